"""Where and on what a measured row ran."""

RAN = {
    "dtype": "bfloat16",
    "attention": "sdpa",
    "machine": "GPU",
    "deltahalt": "0",
    "transformers": "5",
    "torch": "2",
}
