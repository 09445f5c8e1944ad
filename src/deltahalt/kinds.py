"""What the tokens of a prompt are, and which of them a policy may choose among."""

TEXT, IMAGE, VIDEO = 0, 1, 2
DROPPED = -1  # a visual token that was gone before the first layer

SCOPES = {
    "all": (TEXT, IMAGE, VIDEO),
    "text": (TEXT,),
    "visual": (IMAGE, VIDEO),
    "image": (IMAGE,),
    "video": (VIDEO,),
}
