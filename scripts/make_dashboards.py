"""Grafana's dashboards, from tables of panels. `python -m scripts.make_dashboards` writes them.

Queries say `job` nowhere, so they work whatever scrapes the pages. They ask for two labels that the scrape
adds (deploy/README.md): ``candidate`` on servers, ``node`` on servers and exporters.
"""

from pathlib import Path
from typing import Final

from scripts.dashboard_json import Dashboard, Panel, Query, Text, Variable, text_of

FOLDER: Final = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards"
WATCH: Final = "To watch, not a result: rate() extrapolates to the edges of its range."


def rate(metric: str, where: str) -> str:
    return f"rate({metric}{{{where}}}[$__rate_interval])"


def quantiles(metric: str, where: str, by: str, shares: tuple[float, ...]) -> tuple[Query, ...]:
    inner = f"sum by ({by}, le) ({rate(metric + '_bucket', where)})"
    return tuple(
        Query(f"histogram_quantile({share}, {inner})", f"{{{{{by}}}}} p{round(share * 100)}")
        for share in shares
    )


def mean(metric: str, where: str, by: str, legend: str) -> Query:
    total = f"sum by ({by}) ({rate(metric + '_sum', where)})"
    return Query(f"{total} / sum by ({by}) ({rate(metric + '_count', where)})", legend)


def summed(metric: str, where: str, by: str, legend: str) -> Query:
    """Per second."""
    return Query(f"sum by ({by}) ({rate(metric, where)})", legend)


C: Final = 'candidate=~"$candidate"'
N: Final = 'node=~"$node"'
P: Final = 'pool=~"$pool"'
CANDIDATES: Final = Variable(
    "candidate", "Candidate", "label_values(vllm:num_requests_running, candidate)"
)
NODES: Final = Variable("node", "Node", "label_values(greenbench_gpu_power_watts, node)")
POOLS: Final = Variable("pool", "Pool", "label_values(greenbench_gateway_pool_up, pool)")
INTENSITY: Final = Variable("intensity", "g CO₂e per kWh", start="473")

SERVING: Final = Dashboard(
    "serving",
    "Serving",
    "What vLLM's servers do: load, latencies, throughput, KV cache.",
    (CANDIDATES,),
    (
        Panel(
            "Servers that answer", "none",
            (Query(f"sum by (candidate) (up{{{C}}})", "{{candidate}}"),),
            kind="stat", width=6, height=4,
        ),
        Panel(
            "Requests running", "none",
            (Query(f"sum by (candidate) (vllm:num_requests_running{{{C}}})", "{{candidate}}"),),
            kind="stat", width=6, height=4,
        ),
        Panel(
            "Requests waiting", "none",
            (Query(f"sum by (candidate) (vllm:num_requests_waiting{{{C}}})", "{{candidate}}"),),
            kind="stat", width=6, height=4,
        ),
        Panel(
            "KV cache in use", "percentunit",
            (Query(f"max by (candidate) (vllm:kv_cache_usage_perc{{{C}}})", "{{candidate}}"),),
            kind="stat", width=6, height=4, most=1,
        ),
        Panel(
            "TTFT", "s", quantiles("vllm:time_to_first_token_seconds", C, "candidate", (0.5, 0.95, 0.99)),
            "Time to first token as the server counts it, from buckets: the true value is within its bucket.",
        ),
        Panel(
            "TPOT", "s",
            quantiles("vllm:request_time_per_output_token_seconds", C, "candidate", (0.5, 0.95)),
            "Time per output token of a request, its first token left out.",
        ),
        Panel(
            "ITL", "s", quantiles("vllm:inter_token_latency_seconds", C, "candidate", (0.5, 0.99)),
            "Inter-token latency: a stall of one step shows here, not in TPOT.",
        ),
        Panel("E2E latency", "s", quantiles("vllm:e2e_request_latency_seconds", C, "candidate", (0.5, 0.95))),
        Panel(
            "Where a request's time goes", "s",
            (
                mean("vllm:request_queue_time_seconds", C, "candidate", "{{candidate}} queue"),
                mean("vllm:request_prefill_time_seconds", C, "candidate", "{{candidate}} prefill"),
                mean("vllm:request_decode_time_seconds", C, "candidate", "{{candidate}} decode"),
            ),
            "Means of the requests that ended.",
        ),
        Panel(
            "Tokens per second", "none",
            (
                summed("vllm:prompt_tokens_total", C, "candidate", "{{candidate}} prompt"),
                summed("vllm:generation_tokens_total", C, "candidate", "{{candidate}} output"),
            ),
        ),
        Panel(
            "Requests that ended, per second", "reqps",
            (summed("vllm:request_success_total", C, "candidate, finished_reason",
                    "{{candidate}} {{finished_reason}}"),),
        ),
        Panel(
            "Requests running and waiting", "none",
            (
                Query(f"sum by (candidate) (vllm:num_requests_running{{{C}}})", "{{candidate}} running"),
                Query(f"sum by (candidate, reason) (vllm:num_requests_waiting_by_reason{{{C}}})",
                      "{{candidate}} waiting: {{reason}}"),
            ),
        ),
        Panel(
            "KV cache in use over time", "percentunit",
            (Query(f"max by (candidate) (vllm:kv_cache_usage_perc{{{C}}})", "{{candidate}}"),),
            "Of the fullest engine.", most=1,
        ),
        Panel(
            "Preemptions per second", "none",
            (summed("vllm:num_preemptions_total", C, "candidate", "{{candidate}}"),),
            "A preempted request is computed again from its start: the KV cache is too small for this load.",
        ),
        Panel(
            "Prefix cache: share of prompt tokens that were there", "percentunit",
            (Query(
                f"sum by (candidate) ({rate('vllm:prefix_cache_hits_total', C)}) / "
                f"sum by (candidate) ({rate('vllm:prefix_cache_queries_total', C)})", "{{candidate}}",
            ), Query(
                f"sum by (candidate) ({rate('vllm:prompt_tokens_cached_total', C)}) / "
                f"sum by (candidate) ({rate('vllm:prompt_tokens_total', C)})", "{{candidate}} all tiers",
            )),
            "The first is empty where prefix caching is off.", most=1,
        ),
        Panel(
            "Requests refused at the door, per second", "reqps",
            (summed("vllm:admission_rejections_total", C, "candidate, reason", "{{candidate}} {{reason}}"),),
        ),
        Panel(
            "Prompt length", "none", quantiles("vllm:request_prompt_tokens", C, "candidate", (0.5, 0.95)),
            "Tokens, from buckets.",
        ),
        Panel(
            "Prompt lengths, as a map", "none",
            (Query(f"sum by (le) (increase(vllm:request_prompt_tokens_bucket{{{C}}}[$__rate_interval]))",
                   "{{le}}"),),
            "Requests by prompt tokens.", kind="heatmap",
        ),
    ),
)  # fmt: skip

ENERGY_TOTAL: Final = "greenbench_gpu_energy_joules_total"
NODE_W: Final = f"sum by (node) ({rate(ENERGY_TOTAL, N)})"


def node_rate(metric: str) -> str:
    return f"sum by (node) ({rate(metric, N)})"


OUTPUT_PER_S: Final = node_rate("vllm:generation_tokens_total")
KWH: Final = f"sum by (node) (increase({ENERGY_TOTAL}{{{N}}}[$__range])) / 3.6e6"
ALL_CARDS: Final = (
    "All cards of the node over all its servers: idle cards count, and two candidates on one node "
    f"cannot be told apart. {WATCH}"
)
ENERGY: Final = Dashboard(
    "energy",
    "Energy",
    "Power, joules and what holds the clocks down, from the cards' own sensors.",
    (NODES, INTENSITY),
    (
        Panel("Power now", "watt", (Query(NODE_W, "{{node}}"),), "By the energy counters.", "stat", 6, 4),
        Panel("Energy in this time range", "kwatth", (Query(KWH, "{{node}}"),),
              "GPU boards alone: no CPU, no fans, no cooling.", "stat", 6, 4),
        Panel(
            "CO₂e in this time range", "massg", (Query(f"{KWH} * $intensity", "{{node}}"),),
            "That energy times the intensity typed above. The 473 g there at first is the world's mean of "
            "2024 (Ember, Global Electricity Review 2025); type your grid's.", "stat", 6, 4,
        ),
        Panel(
            "CO₂e per million output tokens", "massg",
            (Query(f"{NODE_W} / {OUTPUT_PER_S} / 3.6 * $intensity", "{{node}}"),),
            f"J/token × 10⁶ / 3.6·10⁶ J/kWh × intensity. {ALL_CARDS}", "stat", 6, 4,
        ),
        Panel(
            "Power of each card", "watt",
            (Query(f"sum by (node, uuid) ({rate(ENERGY_TOTAL, N)})", "{{node}} {{uuid}}"),),
            "Slope of the energy counter.",
        ),
        Panel(
            "Power as the driver reports it", "watt",
            (Query(f'greenbench_gpu_power_watts{{{N}, window="average"}}', "{{node}} {{uuid}} {{scope}}"),),
            "The driver's average. Scope memory is a part of the board, not beside it.",
        ),
        Panel(
            "Joules per output token", "joule",
            (Query(f"{NODE_W} / {OUTPUT_PER_S}", "{{node}}"),), ALL_CARDS,
        ),
        Panel(
            "Joules per token in or out", "joule",
            (Query(
                f"{NODE_W} / ({OUTPUT_PER_S} + {node_rate('vllm:prompt_tokens_total')})", "{{node}}",
            ),), ALL_CARDS,
        ),
        Panel(
            "Joules per request", "joule",
            (Query(f"{NODE_W} / {node_rate('vllm:request_success_total')}", "{{node}}"),), ALL_CARDS,
        ),
        Panel("Temperature", "celsius",
              (Query(f"greenbench_gpu_temperature_celsius{{{N}}}", "{{node}} {{uuid}}"),)),
        Panel(
            "What holds the clocks down", "none",
            (Query(f'max by (node, uuid, reason) (greenbench_gpu_clock_event{{{N}, reason!="gpu_idle"}})',
                   "{{node}} {{uuid}} {{reason}}"),),
            "1 while NVML names the reason: throttling by power or heat.", "state-timeline", 16, 10,
        ),
        Panel("Clock of the multiprocessors", "hertz",
              (Query(f"greenbench_gpu_sm_clock_hertz{{{N}}}", "{{node}} {{uuid}}"),)),
        Panel("Time in which any kernel ran", "percentunit",
              (Query(f"greenbench_gpu_utilization_ratio{{{N}}}", "{{node}} {{uuid}}"),),
              "Not how much of the card was used.", most=1),
        Panel(
            "Memory of the cards", "percentunit",
            (Query(f"greenbench_gpu_memory_used_bytes{{{N}}} / on (node, uuid) "
                   f"greenbench_gpu_memory_total_bytes{{{N}}}", "{{node}} {{uuid}}"),),
            "vLLM reserves its KV pool at start.", most=1,
        ),
        Panel("CPU of the hosts", "percentunit",
              (Query(f"greenbench_host_cpu_busy_ratio{{{N}}}", "{{node}}"),), most=1),
        Panel(
            "The sampler itself", "s",
            (
                Query(f"histogram_quantile(0.99, sum by (node, le) "
                      f"({rate('greenbench_sampler_lateness_seconds_bucket', N)}))", "{{node}} lateness p99"),
                Query(f"greenbench_gpu_sample_age_seconds{{{N}}}", "{{node}} {{uuid}} age of the sample"),
            ),
            "Old samples are no samples.",
        ),
        Panel(
            "Which sensors can be read", "none",
            (Query(f"greenbench_source_available{{{N}}}", "{{node}} {{source}}"),),
            kind="state-timeline", width=16,
        ),
    ),
)  # fmt: skip

# Joules of a node belong to a candidate only where the node serves no other.
ALONE: Final = "count by (node) (count by (node, candidate) (vllm:num_requests_running)) == 1"
CANDIDATE_OF_NODE: Final = f"count by (node, candidate) (vllm:num_requests_running{{{C}}})"


def per_candidate(metric: str) -> str:
    """Joules of the nodes that serve one candidate alone, over what was done on these nodes."""
    watts = f"sum by (node) ({rate(ENERGY_TOTAL, '')}) and on (node) ({ALONE})"
    done = f"sum by (node, candidate) ({rate(metric, C)}) and on (node) ({watts})"
    return (
        f"sum by (candidate) (({watts}) * on (node) group_right () ({CANDIDATE_OF_NODE} > bool 0)) / "
        f"sum by (candidate) ({done})"
    )


COMPARISON: Final = Dashboard(
    "comparison",
    "Comparison",
    "Candidates side by side, live.",
    (CANDIDATES,),
    (
        Text(
            "**What you see here is not tested.** Candidates that get different prompts or loads differ for "
            "that reason: look at the last row first. For a claim with intervals, equal prompts and graded "
            "answers run `greenbench run` and read its report."
        ),
        Panel("TTFT p95", "s", quantiles("vllm:time_to_first_token_seconds", C, "candidate", (0.95,))),
        Panel(
            "TPOT p95", "s",
            quantiles("vllm:request_time_per_output_token_seconds", C, "candidate", (0.95,)),
        ),
        Panel("E2E p95", "s", quantiles("vllm:e2e_request_latency_seconds", C, "candidate", (0.95,))),
        Panel(
            "Output tokens per second and server", "none",
            (Query(
                f"sum by (candidate) ({rate('vllm:generation_tokens_total', C)}) / "
                f"count by (candidate) (vllm:num_requests_running{{{C}}})", "{{candidate}}",
            ),),
        ),
        Panel(
            "Joules per output token", "joule",
            (Query(per_candidate("vllm:generation_tokens_total"), "{{candidate}}"),),
            "Only nodes that serve one candidate: elsewhere nobody knows whose joules they are. Idle cards "
            f"of the node count. {WATCH}",
        ),
        Panel(
            "Joules per request", "joule",
            (Query(per_candidate("vllm:request_success_total"), "{{candidate}}"),),
            f"Only nodes that serve one candidate; their idle cards count. {WATCH}",
        ),
        Panel(
            "KV cache in use", "percentunit",
            (Query(f"avg by (candidate) (vllm:kv_cache_usage_perc{{{C}}})", "{{candidate}}"),), most=1,
        ),
        Panel("Preemptions per second", "none",
              (summed("vllm:num_preemptions_total", C, "candidate", "{{candidate}}"),)),
        Panel(
            "Model FLOP/s and server, as vLLM estimates it", "none",
            (Query(
                f"sum by (candidate) ({rate('vllm:estimated_flops_per_gpu_total', C)}) / "
                f"count by (candidate) (vllm:num_requests_running{{{C}}})", "{{candidate}}",
            ),),
            "An estimate by the model's shape, per GPU; 0 where the server does not estimate.",
        ),
        Panel("Is the load alike? Prompt tokens, mean", "none",
              (mean("vllm:request_prompt_tokens", C, "candidate", "{{candidate}}"),)),
        Panel("Is the load alike? Output tokens, mean", "none",
              (mean("vllm:request_generation_tokens", C, "candidate", "{{candidate}}"),)),
        Panel(
            "Is the load alike? Requests running and server", "none",
            (Query(f"avg by (candidate) (vllm:num_requests_running{{{C}}})", "{{candidate}}"),),
        ),
    ),
)  # fmt: skip

G: Final = "greenbench_gateway_"
GATEWAY: Final = Dashboard(
    "gateway",
    "Gateway",
    "Which pool takes what, by which rule, and how the pools are.",
    (POOLS,),
    (
        Panel("Pools that are up", "none", (Query(f"sum({G}pool_up{{{P}}})", "up"),), "", "stat", 6, 4),
        Panel("Open requests", "none", (Query(f"sum({G}open_requests)", "open"),), "", "stat", 6, 4),
        Panel("Policy file is bad", "none", (Query(f"max({G}policy_stale)", "stale"),),
              "1: the old policy stays in force.", "stat", 6, 4),
        Panel(
            "Policy in force", "none",
            (Query(f"{G}policy_info", "{{model}}, {{objective}}, default {{default}}"),),
            kind="stat", width=6, height=4,
        ),
        Panel("Answers per second by pool", "reqps",
              (summed(f"{G}requests_total", P, "pool", "{{pool}}"),)),
        Panel("Answers per second by status and end", "reqps",
              (summed(f"{G}requests_total", P, "status, ended", "{{status}} {{ended}}"),)),
        Panel("Choices per second by rule", "reqps",
              (summed(f"{G}choices_total", P, "rule, pool", "{{rule}} → {{pool}}"),)),
        Panel("TTFT", "s", quantiles(f"{G}ttft_seconds", P, "pool", (0.5, 0.95)),
              "From the request's arrival at the gateway to the first byte of the answer's body."),
        Panel(
            "Time that the gateway adds before sending", "s",
            tuple(
                Query(f"histogram_quantile({share}, sum by (le) ({rate(G + 'own_seconds_bucket', '')}))",
                      f"p{round(share * 100)}")
                for share in (0.5, 0.99)
            ),
        ),
        Panel(
            "Requests that went on to another pool, per second", "reqps",
            (Query(f"sum by (from_pool) ({rate(G + 'failovers_total', '')}) or 0 * sum({G}open_requests)",
                   "{{from_pool}}"),),
            "0 until the first one.",
        ),
        Panel(
            "State of the pools", "none",
            (
                Query(f"{G}pool_up{{{P}}}", "{{pool}} up"),
                Query(f"{G}pool_draining{{{P}}}", "{{pool}} draining"),
                Query(f"{G}pool_ejected{{{P}}}", "{{pool}} ejected"),
            ),
            kind="state-timeline", width=16,
        ),
        Panel(
            "Starts and ejections", "none",
            (Query(f"{G}pool_starts{{{P}}}", "{{pool}} starts"),
             Query(f"{G}pool_ejections{{{P}}}", "{{pool}} ejections")),
        ),
        Panel(
            "Requests at the pools", "none",
            (
                Query(f"{G}pool_in_flight{{{P}}}", "{{pool}} of this gateway"),
                Query(f"{G}pool_running{{{P}}}", "{{pool}} running"),
                Query(f"{G}pool_waiting{{{P}}}", "{{pool}} waiting"),
            ),
            "Running and waiting: as the rules see them.",
        ),
        Panel("KV cache that is free", "percentunit",
              (Query(f"{G}pool_free_kv_tokens{{{P}}} / {G}pool_kv_tokens{{{P}}}", "{{pool}}"),), most=1),
        Panel("Where prompt lengths come from, per second", "reqps",
              (summed(f"{G}lengths_total", "", "source", "{{source}}"),),
              "Estimates cost nothing; /tokenize costs a pool about 1 ms for 1,000 tokens."),
        Panel("Bytes passed on, per second", "Bps",
              (summed(f"{G}response_bytes_total", P, "pool", "{{pool}}"),)),
        Panel(
            "Policy files read", "none",
            (Query(f"sum({G}policy_loads)", "took force"), Query(f"sum({G}policy_failures)", "bad")),
        ),
    ),
)  # fmt: skip
DASHBOARDS: Final = (SERVING, ENERGY, COMPARISON, GATEWAY)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(text_of(dashboard))


if __name__ == "__main__":
    main()
