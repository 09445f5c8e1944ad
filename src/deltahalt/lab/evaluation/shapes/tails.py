"""What follows a question: how the answer is to be written."""

STYLES = (  # 45 words and more
    (
        "Please write your answer as a single complete sentence in plain English, without any introduction, "
        "without bullet points, headings or emphasis, and without repeating these instructions. Avoid filler, "
        "avoid hedging, do not apologize, and do not add any comment of your own afterwards. Keep the tone "
        "friendly but professional."
    ),
    (
        "Format: one short paragraph. Use the active voice and simple words that a twelve year old would "
        "understand. Do not use Markdown, lists, quotation marks or emojis. Leave out greetings and closing "
        "remarks. If you are uncertain, choose the most likely answer anyway, and never mention that you are a "
        "language model."
    ),
    (
        "When you reply, keep to the following style guide: be concise and specific, prefer verbs over nouns, "
        "spell numbers exactly as they appear in the source, use British spelling, and stay below forty words in "
        "total. There must be no preamble, no explanation of how you found the answer, and no follow-up offer of "
        "help."
    ),
    (
        "Your reply will be shown on a small screen, so write at most two lines. Put the most important word "
        "first. Do not use abbreviations that a newcomer could misread, avoid brackets, and leave out every kind "
        "of decoration. Polite, neutral wording is preferred; jokes, opinions and warnings are not wanted here."
    ),
    (
        "Write as an experienced editor would: clear, direct and calm. One sentence is enough, two are the "
        "maximum. Names, dates and figures have to be copied exactly. Nothing should be emphasized, nothing "
        "should be put into a table, and the reply should neither begin with a restatement of the request nor end "
        "with a summary."
    ),
    (
        "Answer in the following manner. First, use full words in place of symbols where that is possible. "
        "Second, keep every sentence under twenty words. Third, refrain from speculation, from disclaimers and "
        "from references to the length or the quality of the material above. Fourth, reply in English only and in "
        "a factual tone."
    ),
)
STEPS = (
    "Think step by step, then give the final answer on a line of its own.",
    "Let's think step by step before answering.",
    "Reason through it carefully, one step at a time, and end with your conclusion.",
    "Explain your reasoning step by step, and finish with the result.",
)
