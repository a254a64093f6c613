"""What is read of a server's pages."""

import pytest

from servers.launch.inspect import CACHE_INFO, ServerSays, engine_caches

PAGE = r"""
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 0.0
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",note="a \"b\", c\\d",num_gpu_blocks="512"} 1.0
"""


def test_the_settings_of_the_cache_are_the_labels_of_one_sample() -> None:
    """Commas and escaped quotes inside a label are part of its value."""
    assert engine_caches(PAGE) == (
        {
            "block_size": "16",
            "cache_dtype": "auto",
            "note": 'a "b", c\\d',
            "num_gpu_blocks": "512",
        },
    )


@pytest.mark.parametrize("page", ["", "<html>no metrics</html>", PAGE.replace(CACHE_INFO, "x:y")])
def test_a_page_without_them_has_none(page: str) -> None:
    assert engine_caches(page) == ()


def engines(*sizes: str | None) -> ServerSays:
    lines = [
        f'{CACHE_INFO}{{engine="{i}",num_gpu_blocks="100",kv_cache_size_tokens="{size}"}} 1.0'
        for i, size in enumerate(sizes)
    ]
    return ServerSays(None, None, None, [], engine_caches("\n".join(lines)))


def test_the_pool_is_that_of_all_engines() -> None:
    """Each line says the pool of its engine; the blocks in it are those of all already."""
    assert engines("100000", "100000").kv_cache_tokens == 200_000
    assert engines("100000", "60000").kv_cache_tokens == 160_000
    assert engines("100000").kv_cache_tokens == 100_000
    assert engines("100000", "None").kv_cache_tokens is None
    assert (engines("1", "1").data_parallel, engines("1").data_parallel) == (2, None)
