"""Bodies are the task's own JSON, whole or cut, encoded without going through JSON again."""

import json
from dataclasses import replace

import pytest

from loadgen.driver.request_bodies import Bodies
from loadgen.tasks import TASKS
from tests.fakes.loadruns import make_prompts


@pytest.mark.parametrize("task", ["retrieve", "perplexity", "summarize"])
def test_a_body_is_what_the_task_says_for_that_prompt(task: str) -> None:
    prompts = make_prompts(task, 64, 3, 8)
    bodies = Bodies(TASKS[task], "golden", prompts)
    for at, prompt in enumerate(prompts):
        assert json.loads(bodies.whole(at)) == TASKS[task].body("golden", prompt)
        for length, output in ((1, 1), (40, 5), (64, 8)):
            cut = replace(prompt, token_ids=prompt.token_ids[:length], output_tokens=output)
            assert json.loads(bodies.cut(at, length, output)) == TASKS[task].body("golden", cut)
