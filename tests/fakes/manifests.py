"""A manifest with the least that one must hold."""

from greenbench.contract.manifest import Clock, Code, Host, Manifest, Server


def manifest(**changes: object) -> Manifest:
    server = Server(
        server_id="s0", requested_backend="a", model="m", model_path="/m", weights="random",
        dtype="float32", kv_cache_dtype="auto", execution="eager", base_url="http://x",
        served_model="m",
    )  # fmt: skip
    fields = {
        "run_id": "r0", "sweep": "s", "config_hash": "ab", "seed": 1, "created_unix_ns": 5,
        "clock": Clock(unix_ns=5, mono_ns=1, host="h"),
        "code": Code(git_sha=None, dirty=None, greenbench="0", python="3", packages={}),
        "host": Host(cpu="c", cores=1, ram_bytes=1, kernel="k"),
        "server": server, "load": {}, "point": {},
    }  # fmt: skip
    return Manifest.model_validate({**fields, **changes})
