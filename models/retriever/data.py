"""Training sequences: reports with records and findings, then several questions with their answers.

Sentences and questions come from ``loadgen.prompts.haystack`` and ``loadgen.prompts.corpus``, the same
functions that make the prompts of the benchmark. A token that can be known only by looking back has weight 1
in the loss.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from loadgen.prompts import haystack, random_words
from loadgen.prompts.corpus import GeneratedText
from loadgen.prompts.encoder import Encoder, load_encoder

BANK_SENTENCES = 20_000  # filler sentences each worker encodes once and draws from
PLAIN_WEIGHT = 0.3  # of an ordinary token that is scored, and the share of them that are
PLAIN_SHARE = 0.08
MOST_RECORDS = 90


@dataclass(slots=True)
class Sequence:
    token_ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # of predicting this token from those before

    def add(self, ids: list[int], weight: float) -> None:
        self.token_ids += ids
        self.weights += [weight] * len(ids)


class Maker:
    """Makes sequences of exactly ``length`` tokens from a seed."""

    def __init__(self, model_path: str, seed: str) -> None:
        self.rng = random.Random(seed)
        self.encoder: Encoder = load_encoder(model_path)
        self.eos = self.encoder.token_id("<|eos|>")
        sentences = GeneratedText().sentences(self.rng)
        self.bank = self.encoder.encode([" " + next(sentences) for _ in range(BANK_SENTENCES)])

    def sequence(self, length: int) -> Sequence:
        rng = self.rng
        count = rng.randint(2, max(3, min(MOST_RECORDS, length // 14)))
        known = haystack.draw_records(rng, count)
        findings = (
            self._findings(rng.randint(2, 6)) if rng.random() < 0.35 and length >= 384 else []
        )
        tail = self._tail(known, findings, budget=length * rng.uniform(0.2, 0.5))
        body = Sequence()
        title = (
            f"Report {rng.randrange(1, 1000)} {rng.randrange(1, 1000)} {rng.randrange(1, 1000)}."
        )
        body.add([*self.encoder.opening, *self.encoder.encode([title])[0]], 0)
        self._document(
            body, known, findings, room=length - len(tail.token_ids) - len(body.token_ids)
        )
        whole = Sequence(body.token_ids + tail.token_ids, body.weights + tail.weights)
        whole.token_ids, whole.weights = whole.token_ids[:length], whole.weights[:length]
        for i in range(1, length):
            if whole.weights[i] == 0 and rng.random() < PLAIN_SHARE:
                whole.weights[i] = PLAIN_WEIGHT
        return whole

    def _document(
        self, body: Sequence, known: list[tuple[str, str]], findings: list[str], room: int
    ) -> None:
        """Filler with every record once, some of them again later, and the findings in order."""
        rng = self.rng
        stated = [haystack.record(*pair) for pair in known]
        again = rng.sample(stated, len(stated) // 4)
        placed = [(rng.random(), text) for text in stated + again]
        placed += zip(sorted(rng.random() for _ in findings), findings, strict=True)
        placed.sort(key=lambda pair: pair[0])
        encoded = self.encoder.encode([" " + text for _, text in placed])
        filler_room = room - sum(map(len, encoded))
        seen: set[str] = set()
        used = 0
        for (depth, text), ids in zip(placed, encoded, strict=True):
            used += self._filler(body, int(depth * filler_room) - used)
            known_tail = 3 if text in seen else 0  # both halves of the code and the full stop
            body.add(ids[: len(ids) - known_tail], 0)
            body.add(ids[len(ids) - known_tail :], 1)
            seen.add(text)
        self._filler(body, filler_room - used, exact=True)

    def _filler(self, body: Sequence, tokens: int, exact: bool = False) -> int:
        """Sentences of about (or exactly) so many tokens; returns how many were added."""
        added = 0
        while added < tokens:
            ids = self.rng.choice(self.bank)
            ids = ids[: tokens - added] if exact else ids
            body.add(ids, 0)
            added += len(ids)
        return added

    def _tail(self, known: list[tuple[str, str]], findings: list[str], budget: float) -> Sequence:
        """Questions with answers, in random order, until the budget is used up."""
        rng = self.rng
        tail = Sequence()
        asked = known.copy()
        rng.shuffle(asked)
        taken = {subject for subject, _ in known}
        absent = [
            subject for subject in rng.sample(random_words.SUBJECTS, 120) if subject not in taken
        ]
        if findings:
            self._add(
                tail, haystack.ask_findings(len(findings)), "\n".join(findings)[len("Finding 1:") :]
            )
        while len(tail.token_ids) < budget and asked:
            kind = rng.random()
            if kind < 0.22:
                self._add(tail, haystack.ask_one(absent.pop()), f" {haystack.NONE}.")
            elif kind < 0.55 or len(asked) < 2:
                subject, code = asked.pop()
                self._add(tail, haystack.ask_one(subject), f" {code}.")
            else:
                chosen = [asked.pop() for _ in range(min(len(asked), rng.randint(2, 6)))]
                subjects = [subject for subject, _ in chosen]
                question = haystack.ask_many(subjects)
                answer = " ".join(haystack.record(*pair) for pair in chosen)
                self._add(tail, question, answer[len(f"The code of {subjects[0]} is") :])
        return tail

    def _add(self, tail: Sequence, question: haystack.Question, answer: str) -> None:
        asked, answered = self.encoder.encode([question.plain, answer])
        tail.add(asked, 0)
        tail.add([*answered, self.eos], 1)

    def _findings(self, count: int) -> list[str]:
        figures = self.rng.sample(haystack.CODES, count)
        return [haystack.finding(self.rng, n, figure) for n, figure in enumerate(figures, start=1)]


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches ``(token_ids, weights)``, each [tokens / length, length]."""

    def __init__(self, model_path: str, seed: int, length: int, tokens: int) -> None:
        self.args = (model_path, seed, length, tokens)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        model_path, seed, length, tokens = self.args
        worker = get_worker_info()
        maker = Maker(model_path, f"{seed}/{length}/{worker.id if worker else 0}")
        while True:
            made = [maker.sequence(length) for _ in range(max(1, tokens // length))]
            yield (
                torch.tensor([s.token_ids for s in made], dtype=torch.int32),
                torch.tensor([s.weights for s in made], dtype=torch.float16),
            )
