"""The halting engine: a replacement of the decoder's forward, in which deeper layers run on fewer tokens."""
