"""Parts of a manifest that may hold more than is named: read by their keys, kept as they were written."""

import json

import pytest
from pydantic import ValidationError

from greenbench.contract.manifest import ClientAudit, Manifest, ProofDetail
from loadgen.driver.client_audit import Audit
from tests.fakes.manifests import manifest


def test_every_key_that_is_read_of_an_audit_is_one_that_the_client_writes() -> None:
    """A key that was renamed on one side alone would be read as its default for ever."""
    written = Audit().report()
    assert set(ClientAudit.model_fields) - set(written) == {"invalid"}  # the sweep adds it
    assert ClientAudit.model_validate(written).model_dump(exclude_unset=True) == written


def test_what_a_newer_minor_version_adds_is_kept_and_not_read() -> None:
    said = {"over_budget": True, "reasons": ["late"], "of_tomorrow": {"a": [1]}}
    detail = {"says": "x", "attention_layers": {"A": 4}}
    raw = json.loads(manifest(client_audit={"locust": said}).model_dump_json())
    raw["server"]["proof_detail"] = detail
    read = Manifest.model_validate(raw)
    assert (read.audits["locust"].reasons, read.server.shown.says) == (["late"], "x")
    assert (read.client_audit, read.server.proof_detail) == ({"locust": said}, detail)
    assert json.loads(read.model_dump_json()) == raw


def test_an_audit_and_a_proof_without_keys_are_enough() -> None:
    read = manifest(client_audit={"locust": {}})
    assert read.audits == {"locust": ClientAudit()} and read.server.shown == ProofDetail()


def test_a_value_of_another_type_is_refused_on_reading() -> None:
    with pytest.raises(ValidationError, match="reasons"):
        manifest(client_audit={"locust": {"reasons": "late"}})
