"""The policy that holds now: read anew when its file changes. A bad file changes nothing, and it is said."""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from greenbench.contract.errors import UserError, nearest, system_sentence
from greenbench.contract.policy import Chooser, Policy, compile, load_policy

log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class InForce:
    """``edges``: prompt lengths (tokens) at which a rule begins or ends, dead bands counted."""

    policy: Policy
    chooser: Chooser
    edges: tuple[float, ...]


def in_force(policy: Policy) -> InForce:
    ends = {
        end
        for rule in policy.rules
        for end in (
            rule.when.uncached_prompt_tokens.at_least,
            rule.when.uncached_prompt_tokens.below,
        )
        if end is not None
    }
    factors = {1.0, policy.dead_band, 1 / policy.dead_band}
    edges = {end * factor for end in ends for factor in factors}
    edges |= {
        end
        for pool in policy.pools.values()
        for bar in pool.barred
        for end in (bar.prompt_tokens.at_least, bar.prompt_tokens.below)
        if end is not None
    }
    return InForce(policy, compile(policy), tuple(sorted(edges)))


class PolicyFile:
    """``pools``: names that have an address. Raises UserError when the first reading fails."""

    def __init__(self, path: Path, pools: Collection[str]) -> None:
        self._path, self._pools = path, pools
        self.fault: str | None = None  # why the file as it is now is not in force
        self.loads = self.failures = 0
        self._stamp = self._stat()
        self.now = self._load()
        self.loads += 1

    async def reload(self, always: bool = False) -> None:
        """Read the file if it changed since it was last looked at, or ``always``."""
        stamp = self._stat()
        if stamp == self._stamp and not always:
            return
        self._stamp = stamp
        try:
            self.now = await asyncio.to_thread(self._load, self.now.policy)
        except (UserError, OSError) as error:
            said = system_sentence(error) if isinstance(error, OSError) else str(error)
            self.fault, self.failures = said, self.failures + 1
            log.error("the policy that was in force stays: %s", said)
            return
        self.fault, self.loads = None, self.loads + 1
        log.info("policy read anew: %s", summary(self.now.policy))

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self, before: Policy | None = None) -> InForce:
        policy = load_policy(self._path)
        if before is not None:
            self._refuse_other_model(policy, before)
        if policy.default not in self._pools:
            raise UserError(
                f"{self._path}: its default pool '{policy.default}' has no address; give "
                f"--pool {policy.default}=http://host:port (pools with an address: "
                f"{', '.join(sorted(self._pools)) or 'none'})"
            )
        for name in sorted(set(self._pools) - set(policy.pools)):
            log.warning(
                "pool '%s' is not in the policy and gets no request; %s",
                name,
                nearest(name, policy.pools),
            )
        for name in sorted(set(policy.pools) - set(self._pools)):
            log.warning("pool '%s' of the policy has no address and gets no request", name)
        return in_force(policy)

    def _refuse_other_model(self, policy: Policy, before: Policy) -> None:
        new, old = policy.model, before.model
        revisions = {new.revision, old.revision} - {None}
        if new.name != old.name or len(revisions) > 1:
            raise UserError(
                f"{self._path}: a policy of the model {_named(new.name, new.revision)}, the one in force "
                f"is of {_named(old.name, old.revision)}; start a gateway of its own for another model"
            )


def _named(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name} at revision {revision}"


def summary(policy: Policy) -> str:
    """One line for the log."""
    rules = f"{len(policy.rules)} rules" if policy.decided else "no policy"
    return f"{policy.model.name}, {policy.objective}, {rules}, default pool {policy.default}"
