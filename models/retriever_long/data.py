"""Training sequences of exact length: a report that holds facts of many tasks, then questions and answers.

Every fact and question is made by the functions that make the benchmark's prompts
(``loadgen.prompts.haystack``, ``loadgen.tasks``), with other seeds. A token that can be known only by
looking back has weight 1 in the loss or more, where a task has few such tokens.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from loadgen.prompts import haystack, random_words
from loadgen.prompts.corpus import GeneratedText
from loadgen.prompts.encoder import Encoder, load_encoder
from loadgen.prompts.haystack import Question
from loadgen.tasks import documents, frequent_word, multi_value, variables

BANK_SENTENCES = 20_000  # filler sentences each worker encodes once and draws runs from
RUN_SENTENCES = 8  # sentences that follow each other in the bank, at most, in one report
PLAIN_WEIGHT = 0.3
PLAIN_TOKENS = 600  # ordinary tokens scored a sequence, at most, and
PLAIN_SHARE = 0.08  # their share, at most
FACT_SHARE = 0.5  # of the report's tokens that may be facts
LONGEST_TAIL = 4096  # tokens of questions and answers
DOCUMENTS_SHARE = 0.15  # of the sequences
SPECIAL_SHARE = 0.5  # of the questions, while there are any but those for a code
COUNTED_WEIGHT = 8.0  # one token a sequence is the answer
LISTED_WEIGHT = 2.0


@dataclass(frozen=True, slots=True)
class Fact:
    depth: float  # 0 = first, 1 = last of the filler
    text: str
    again: bool = False  # a record told before: its code can be known


@dataclass(frozen=True, slots=True)
class Ask:
    question: Question
    answer: str
    weight: float = 1.0


@dataclass(slots=True)
class Parts:
    """What a report holds and what may be asked about it."""

    facts: list[Fact] = field(default_factory=list[Fact])
    special: list[Ask] = field(default_factory=list[Ask])
    known: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


@dataclass(frozen=True, slots=True)
class Sequence:
    token_ids: NDArray[np.int32]  # [length]
    weights: NDArray[np.float16]  # [length], of predicting this token from those before


class Maker:
    """Makes sequences of exactly ``length`` tokens from a seed."""

    def __init__(self, tokenizer_folder: str, seed: str) -> None:
        self.rng = random.Random(seed)
        self.encoder: Encoder = load_encoder(tokenizer_folder)
        self.eos = self.encoder.token_id("<|eos|>")
        sentences = GeneratedText().sentences(self.rng)
        bank = self.encoder.encode([" " + next(sentences) for _ in range(BANK_SENTENCES)])
        self.bank = np.fromiter((i for ids in bank for i in ids), np.int32)
        self.starts = np.cumsum([0, *map(len, bank)])

    def sequence(self, length: int) -> Sequence:
        rng = self.rng
        parts = Parts()
        if length >= 512 and rng.random() < DOCUMENTS_SHARE:
            self._documents(parts, length)
        else:
            self._report(parts, length)
        tail = self._tail(parts, min(int(length * rng.uniform(0.1, 0.45)), LONGEST_TAIL))
        numbers = " ".join(str(rng.randrange(1, 1000)) for _ in range(3))
        opening = [*self.encoder.opening, *self.encoder.encode([f"Report {numbers}."])[0]]
        head = (np.array(opening, np.int32), np.zeros(len(opening), np.float16))
        room = length - sum(len(ids) for ids, _ in tail) - len(opening)
        pieces = [head, *self._body(parts.facts, room), *tail]
        token_ids = np.concatenate([ids for ids, _ in pieces])[:length]
        weights = np.concatenate([w for _, w in pieces])[:length]
        share = min(PLAIN_SHARE, PLAIN_TOKENS / length)
        plain = np.random.default_rng(rng.getrandbits(64)).random(length) < share
        weights[plain & (weights == 0)] = PLAIN_WEIGHT
        weights[0] = 0
        return Sequence(token_ids, weights)

    def _report(self, parts: Parts, length: int) -> None:
        """Kinds of facts in random order, as long as they fit; records of single codes always."""
        rng = self.rng
        budget = int(length * FACT_SHARE)
        subjects = rng.sample(random_words.SUBJECTS, len(random_words.SUBJECTS))
        kinds: list[Callable[[Parts, list[str], int], int]] = [
            self._findings,
            self._counted,
            self._chains,
            self._values,
        ]
        few = rng.randint(2, max(3, min(24, budget // 14)))
        budget -= self._records(parts, subjects, few)
        for kind in rng.sample(kinds, len(kinds)):
            if rng.random() < 0.55:
                budget -= kind(parts, subjects, budget)
        if rng.random() < 0.6:
            self._records(parts, subjects, rng.randint(0, max(0, min(70, budget // 14))))
        rng.shuffle(parts.known)

    def _records(self, parts: Parts, subjects: list[str], count: int) -> int:
        """Adds records, a quarter of them told twice; returns about how many tokens they take."""
        rng = self.rng
        codes = rng.sample(haystack.CODES, count)
        known = [(subjects.pop(), str(code)) for code in codes]
        parts.known += known
        for index, pair in enumerate(known):
            depths = sorted(rng.random() for _ in range(2 if index % 4 == 0 else 1))
            text = " " + haystack.record(*pair)
            parts.facts += [Fact(depth, text, again=i > 0) for i, depth in enumerate(depths)]
        return count * 10

    def _findings(self, parts: Parts, _: list[str], budget: int) -> int:
        rng = self.rng
        count = rng.randint(2, 6)
        if count * 14 > budget:
            return 0
        figures = rng.sample(haystack.CODES, count)
        told = [haystack.finding(rng, n, figure) for n, figure in enumerate(figures, start=1)]
        depths = sorted(rng.random() for _ in told)
        parts.facts += [Fact(d, " " + text) for d, text in zip(depths, told, strict=True)]
        answer = "\n".join(told)[len("Finding 1:") :]
        parts.special.append(Ask(haystack.ask_findings(count), answer))
        return count * 14

    def _counted(self, parts: Parts, subjects: list[str], budget: int) -> int:
        """As ``frequent_word`` has it: eight things by four and four more of one, or other numbers."""
        rng = self.rng
        kinds, others, lead = 8, 4, 4
        if rng.random() < 0.5 or budget < 6 * (kinds * others + lead):
            kinds = rng.randint(2, 12)
            others = rng.randint(1, max(1, min(6, budget // (7 * kinds))))
            lead = rng.randint(1, others + 2)
        if 6 * (kinds * others + lead) > budget:
            return 0
        things = [subjects.pop() for _ in range(kinds)]
        counted = things * others + things[:1] * lead
        parts.facts += [
            Fact(rng.random(), " " + frequent_word.one_more(thing)) for thing in counted
        ]
        parts.special.append(Ask(frequent_word.QUESTION, f" {things[0]}.", COUNTED_WEIGHT))
        return 6 * len(counted)

    def _chains(self, parts: Parts, subjects: list[str], budget: int) -> int:
        """As ``variables`` has it: codes handed on from subject to subject."""
        rng = self.rng
        chains, hops = (3, 3) if rng.random() < 0.5 else (rng.randint(1, 4), rng.randint(1, 4))
        if 13 * chains * (hops + 1) > budget:
            return 0
        for code in map(str, rng.sample(haystack.CODES, chains)):
            chain = [subjects.pop() for _ in range(hops + 1)]
            told = [haystack.record(chain[0], code)]
            told += [variables.handed_on(new, old) for old, new in pairwise(chain)]
            depths = sorted(rng.random() for _ in told)
            parts.facts += [Fact(d, " " + text) for d, text in zip(depths, told, strict=True)]
            question = variables.question(code, len(chain))
            parts.special.append(Ask(question, f" {', '.join(chain)}.", LISTED_WEIGHT))
        return 13 * chains * (hops + 1)

    def _values(self, parts: Parts, subjects: list[str], budget: int) -> int:
        """As ``multi_value`` has it: several codes of a subject, asked for in the report's order."""
        rng = self.rng
        used = 0
        for _ in range(rng.randint(1, 3)):
            values = rng.choice((2, 3, 4, 4, 4, 5))
            if used + 8 * values > budget:
                break
            subject = subjects.pop()
            codes = [str(code) for code in rng.sample(haystack.CODES, values)]
            depths = [(i + rng.random()) / values for i in range(values)]
            parts.facts += [
                Fact(d, " " + haystack.record(subject, code))
                for d, code in zip(depths, codes, strict=True)
            ]
            question = multi_value.question(subject, values)
            parts.special.append(Ask(question, f" {', '.join(codes)}.", LISTED_WEIGHT))
            used += 8 * values
        return used

    def _documents(self, parts: Parts, length: int) -> None:
        """As ``documents`` has it: documents that give different codes of the same subjects."""
        rng = self.rng
        count = rng.choice((2, 3, 4, 4, 4, 5, 6))
        most = max(1, int(length * FACT_SHARE) // (9 * count))
        subjects = rng.sample(random_words.SUBJECTS, min(most, rng.randint(1, 6)))
        for document in range(count):
            parts.facts.append(Fact(document / count, documents.heading(document + 1)))
            for subject in subjects:
                depth = (document + rng.uniform(0.01, 0.99)) / count
                code = str(rng.choice(haystack.CODES))
                parts.facts.append(Fact(depth, " " + haystack.record(subject, code)))
                question = documents.question(document + 1, subject)
                parts.special.append(Ask(question, f" {code}.", LISTED_WEIGHT))

    def _body(
        self, facts: list[Fact], room: int
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float16]]]:
        """(token ids, weights) of ``room`` tokens: filler with every fact at its depth."""
        facts = sorted(facts, key=lambda fact: fact.depth)
        encoded = self.encoder.encode([fact.text for fact in facts])
        filler_room = max(0, room - sum(map(len, encoded)))
        used = 0
        for fact, ids in zip(facts, encoded, strict=True):
            for stretch in self._filler(int(fact.depth * filler_room) - used):
                used += len(stretch)
                yield stretch, np.zeros(len(stretch), np.float16)
            weights = np.zeros(len(ids), np.float16)
            if fact.again:
                weights[-3:] = 1  # both halves of the code and the full stop
            yield np.array(ids, np.int32), weights
        left = filler_room - used
        for stretch in self._filler(left):
            yield stretch[:left], np.zeros(min(left, len(stretch)), np.float16)
            left -= len(stretch)

    def _filler(self, tokens: int) -> Iterator[NDArray[np.int32]]:
        """Runs of whole sentences, together of ``tokens`` or somewhat more."""
        while tokens > 0:
            first = self.rng.randrange(BANK_SENTENCES - RUN_SENTENCES)
            ends = self.starts[first + 1 : first + 1 + RUN_SENTENCES] - self.starts[first]
            count = min(int(np.searchsorted(ends, tokens)) + 1, RUN_SENTENCES)
            run = self.bank[self.starts[first] : self.starts[first + count]]
            tokens -= len(run)
            yield run

    def _tail(
        self, parts: Parts, budget: int
    ) -> list[tuple[NDArray[np.int32], NDArray[np.float16]]]:
        """Questions with answers, in random order, until the budget is used up; one at least."""
        rng = self.rng
        rng.shuffle(parts.special)
        taken = {subject for subject, _ in parts.known}
        absent = [
            s for s in rng.sample(random_words.SUBJECTS, 200) if self._is_absent(s, parts, taken)
        ]
        pieces: list[tuple[NDArray[np.int32], NDArray[np.float16]]] = []
        used = 0
        while not pieces or used < budget:
            if parts.special and (rng.random() < SPECIAL_SHARE or not parts.known):
                ask = parts.special.pop()
            elif parts.known:
                ask = self._ask_known(parts.known, absent)
            else:
                break
            question, answer = self.encoder.encode([ask.question.plain, ask.answer])
            answer = [*answer, self.eos]
            pieces.append((np.array(question, np.int32), np.zeros(len(question), np.float16)))
            pieces.append(
                (np.array(answer, np.int32), np.full(len(answer), ask.weight, np.float16))
            )
            used += len(question) + len(answer)
        return pieces

    def _ask_known(self, known: list[tuple[str, str]], absent: list[str]) -> Ask:
        rng = self.rng
        kind = rng.random()
        if kind < 0.2 and absent:
            return Ask(haystack.ask_one(absent.pop()), f" {haystack.NONE}.")
        if kind < 0.6 or len(known) < 2:
            subject, code = known.pop()
            return Ask(haystack.ask_one(subject), f" {code}.")
        chosen = [known.pop() for _ in range(min(len(known), rng.randint(2, 6)))]
        told = " ".join(haystack.record(*pair) for pair in chosen)
        subjects = [subject for subject, _ in chosen]
        return Ask(haystack.ask_many(subjects), told[len(f"The code of {subjects[0]} is") :])

    def _is_absent(self, subject: str, parts: Parts, taken: set[str]) -> bool:
        return subject not in taken and not any(f" {subject} " in f.text for f in parts.facts)


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches ``(token_ids, weights)``, each [tokens / length, length], the lengths by turns."""

    def __init__(self, tokenizer_folder: str, seed: str, lengths: list[int], tokens: int) -> None:
        self.args = (tokenizer_folder, seed, lengths, tokens)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        folder, seed, lengths, tokens = self.args
        worker = get_worker_info()
        maker = Maker(folder, f"{seed}/{lengths}/{worker.id if worker else 0}")
        turn = worker.id if worker else 0
        while True:
            length = lengths[turn % len(lengths)]
            turn += 1
            made = [maker.sequence(length) for _ in range(max(1, tokens // length))]
            yield (
                torch.from_numpy(np.stack([s.token_ids for s in made])),
                torch.from_numpy(np.stack([s.weights for s in made])),
            )
