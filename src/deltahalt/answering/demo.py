"""The demo's document: help texts of the Python standard library, with one fact inserted near the middle."""

from pydoc_data.topics import topics

from transformers import PreTrainedTokenizerBase

FACT = "The best thing to do in San Francisco is to eat a sandwich and sit in Dolores Park on a sunny day."
QUESTION = "Based on the text above, what is the best thing to do in San Francisco?"
EXPECTED = "Dolores Park"
DOCUMENT_TOKENS = 4300


def demo_document(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return about DOCUMENT_TOKENS tokens of `pydoc_data.topics`, with FACT after a sentence near the middle."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    text = str(tokenizer.decode(tokenizer(text)["input_ids"][:DOCUMENT_TOKENS]))
    middle = text.rfind(". ", 0, len(text) // 2) + 2
    return f"{text[:middle]}{FACT} {text[middle:]}"
