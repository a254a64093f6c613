"""`vllm bench serve` by its module: the CPU build's own command does not find its version."""

import argparse

from vllm.benchmarks import serve

parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
