"""The kinds of prompt tokens, and the kinds that a policy may halt in each scope."""

TEXT, IMAGE, VIDEO = 0, 1, 2
DROPPED = -1  # a visual token that was removed before the first layer

SCOPES = {
    "all": (TEXT, IMAGE, VIDEO),
    "text": (TEXT,),
    "visual": (IMAGE, VIDEO),
    "image": (IMAGE,),
    "video": (VIDEO,),
}
