"""A prompt as a page (Fig. 8): each token's score, and at which layer it halted."""
