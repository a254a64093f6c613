"""`vllm bench serve` by its module: the CPU build's own command does not find its version.

Its custom dataset is read here without pandas, which the server's environment does not hold.
"""

import argparse
import json
from pathlib import Path

from vllm.benchmarks import serve
from vllm.benchmarks.datasets import CustomDataset


def load_data(self: CustomDataset) -> None:
    self.data = [json.loads(line) for line in Path(self.dataset_path).read_text().splitlines()]


CustomDataset.load_data = load_data
parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
