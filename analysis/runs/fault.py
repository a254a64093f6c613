"""What makes a point's numbers unusable: a code and a sentence."""

from dataclasses import dataclass

from analysis.runs.boundary import words

# Beside greenbench.contract.manifest.INVALID_REASONS, which the capture writes, what the analysis finds.
# docs/contract.md gives the rule of each.
CODES: dict[str, str] = {
    "unreadable": "a file cannot be read",
    "failed": "the point failed",
    "file_missing": "a file of the manifest is not there",
    "file_changed": "a file is not the one that was hashed",
    "file_unlisted": "a request file is not in the manifest",
    "config_differs": "manifest and config speak of different points",
    "phases_differ": "phases of the manifest, marks of the events and the config differ",
    "duplicate_requests": "a request stands in two rows",
    "foreign_rows": "rows of another run or task",
    "unknown_word": "a word that the contract does not know",
    "incomplete_success": "a success without what a success has",
    "empty_success": "a success without an output token",
    "no_usage": "a success without token counts of the server",
    "output_length_mismatch": "another number of output tokens than was asked for",
    "prompts_mixed": "a prompt's number and its hash do not belong together",
    "impossible_counts": "a count that cannot be",
    "times_out_of_order": "times that cannot be, or in another order",
    "chunks_out_of_order": "chunk times that fall, or do not fit their request",
    "chunk_counts": "cumulative tokens that fall, or do not add up to the output tokens",
    "outside_phases": "requests outside the phase that they are said to be of",
    "too_many_in_flight": "more requests open than the load has users",
    "not_as_scheduled": "an open loop whose requests do not follow its schedule",
    "outputs_differ": "graded answers that do not belong to the requests",
    "token_totals_differ": "the server counted other tokens than the clients were told of",
    "counter_fell": "a counter of the server fell",
    "impossible_reading": "a reading that no sensor can give",
}


@dataclass(frozen=True)
class Fault:
    """``code`` is a key of greenbench.contract.manifest.INVALID_REASONS or of CODES.

    Of what a run holds, its sentence may repeat an id or a word: one printable line is made of all.
    """

    code: str
    sentence: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "sentence", words(self.sentence))
