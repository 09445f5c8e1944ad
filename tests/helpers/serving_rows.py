"""A row of prompts that stock vLLM served."""

from deltahalt.lab.bench.serving import STOCK, ServingRow
from helpers.ran import RAN

ROW = ServingRow(
    model="m",
    policy=STOCK,
    mode="default",
    vllm="0.26.0",
    gpus=1,
    prompt=16_384,
    runs=3,
    first_token=0.43,
    new_tokens=128,
    token=0.0051,
    requests=24,
    per_second=2.1,
    **RAN,
)
