"""Words that tell apart what is apart, and no more of them."""

from analysis.runs.identity import Candidate, DeviceKind, Scenario, Workload
from analysis.runs.labels import apart_words, device_words, labels
from greenbench.contract.config import LoadConfig, PhaseConfig, SloConfig

H200 = DeviceKind("Xeon", 32, ("NVIDIA H200",), "580.1")


def test_one_card_beside_another_needs_no_processor() -> None:
    h100 = DeviceKind("Xeon", 16, ("NVIDIA H100",), "580.1")
    told = device_words([H200, h100])
    assert told == {H200: "NVIDIA H200 (driver 580.1)", h100: "NVIDIA H100 (driver 580.1)"}


def test_the_same_card_in_two_hosts_is_named_with_them() -> None:
    half = DeviceKind("Xeon", 16, ("NVIDIA H200",), "580.1")
    assert device_words([H200, half, H200]) == {
        H200: "NVIDIA H200 (driver 580.1), Xeon (32 cores)",
        half: "NVIDIA H200 (driver 580.1), Xeon (16 cores)",
    }


def test_beside_a_load_stands_only_what_is_apart() -> None:
    half, other = (DeviceKind(cpu, 16, ("NVIDIA H200",), "580.1") for cpu in ("Xeon", "EPYC"))
    h100 = DeviceKind("Xeon", 16, ("NVIDIA H100",), "580.1")
    assert apart_words([H200, half]) == {H200: "32 CPU cores", half: "16 CPU cores"}
    assert apart_words([H200, other]) == {H200: "Xeon (32 cores)", other: "EPYC (16 cores)"}
    assert apart_words([H200, h100]) == device_words([H200, h100])


def asked(context: int, prompts: str, seed: int | None) -> Scenario:
    load = LoadConfig(kind="closed", users=8)
    work = Workload(
        "recall", (), 8, None, context, load, PhaseConfig(), SloConfig(), prompts * 64, seed
    )
    return Scenario("m", work, H200, None)


def load_words(*scenarios: Scenario) -> list[str]:
    return [labels([], scenarios).loads[each] for each in scenarios]


def test_two_sets_of_prompts_are_told_apart_by_their_seeds_at_each_context() -> None:
    both = asked(2048, "a", 1), asked(8192, "b", 1), asked(2048, "c", 2), asked(8192, "d", 2)
    first, second = "8 users · prompts of seed 1", "8 users · prompts of seed 2"
    assert load_words(*both) == [first, first, second, second]


def test_prompts_that_a_seed_does_not_tell_apart_go_by_their_hash() -> None:
    assert load_words(asked(2048, "a", 1), asked(2048, "c", 1)) == [
        "8 users · prompts aaaaaaaa",
        "8 users · prompts cccccccc",
    ]
    assert (
        load_words(asked(2048, "a", None), asked(2048, "c", 1))[1] == "8 users · prompts cccccccc"
    )


def test_equal_prompts_are_one_load_whatever_drew_them() -> None:
    assert asked(2048, "a", 1) == asked(2048, "a", 2)
    assert load_words(asked(2048, "a", 1), asked(8192, "b", 2)) == ["8 users", "8 users"]


def served(backend: str, kv_cache_dtype: str = "auto", chunk: int = 2048) -> Candidate:
    return Candidate(
        model="m",
        model_path="/models/m",
        model_source="built",
        weights="random",
        backend=backend,
        options=(),
        dtype="bfloat16",
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel=1,
        vllm_version="0.32.0",
        execution="full",
        settings=(("max_num_batched_tokens", chunk),),
    )


def test_a_label_leaves_out_what_most_candidates_share() -> None:
    """Of four, three have an unquantised cache and three chunks of 2,048 tokens."""
    four = (
        served("fa"),
        served("triton"),
        served("fa", kv_cache_dtype="fp8"),
        served("fa", chunk=8192),
    )
    found = labels(four, [])
    assert list(found.candidates.values()) == [
        "fa",
        "triton",
        "fa · KV fp8",
        "fa · max_num_batched_tokens 8192",
    ]
    assert found.usual == ("KV auto", "max_num_batched_tokens 2048")


def test_of_three_that_differ_all_say_it() -> None:
    found = labels([served("fa"), served("triton"), served("fa", kv_cache_dtype="fp8")], [])
    assert list(found.candidates.values()) == ["fa · KV auto", "triton · KV auto", "fa · KV fp8"]
    assert found.usual == ()


def test_labels_say_all_where_a_given_name_is_what_is_left_of_another() -> None:
    four = served("fa"), served("triton"), served("flex"), served("fa", kv_cache_dtype="fp8")
    found = labels(four, [], names={four[3]: "fa"})
    assert list(found.candidates.values()) == [
        "fa · KV auto",
        "triton · KV auto",
        "flex · KV auto",
        "fa",
    ]
