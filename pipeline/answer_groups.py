"""Which cached answers are known to say the same: groups, linked as answers are compared, and how reliable the comparing is.

Comparing makes mistakes, and a wrong link is never taken back: two groups that were merged by mistake spoil each other. So a group is heard
as a whole (its majority says whether the new answer agrees), and the disagreement within groups measures the judge's noise.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_CLEAN = 0.01
"""A judge that disagrees with its own majority less often than this is believed at its first word."""
_PROVEN = 100
"""Words of a judge in groups of three or more, after which its noise counts as measured."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One comparison: the new answer with that of a point which was found near it."""

    point: str
    agrees: bool


class AnswerGroups:
    """Groups of point ids. A point that was never linked is a group of its own."""

    def __init__(self) -> None:
        self._group: dict[str, str] = {}
        self._members: dict[str, set[str]] = {}
        self.made = 0
        """Names given so far."""
        self.votes = 0
        """Words of the judge by which its noise is measured, and those of them against their group's majority."""
        self.minority = 0

    @classmethod
    def restored(cls, groups: Mapping[str, str], made: int, votes: int, minority: int) -> "AnswerGroups":
        """From what `members` and the three counts said."""
        found = cls()
        found._group = dict(groups)
        for point, group in groups.items():
            found._members.setdefault(group, set()).add(point)
        found.made, found.votes, found.minority = made, votes, minority
        return found

    def members(self) -> dict[str, str]:
        """Each linked point's group."""
        return dict(self._group)

    def of(self, point: str) -> str:
        """The name of the point's group."""
        return self._group.get(point, point)

    def __len__(self) -> int:
        """Points that are linked to others."""
        return len(self._group)

    @property
    def judge_noise(self) -> float | None:
        """The share of comparisons that go against the majority of their group; None until enough were seen."""
        return self.minority / self.votes if self.votes >= _PROVEN else None

    def link(self, point: str, other: str) -> None:
        """Their answers are equal: so are all of both groups."""
        one, two = self.of(point), self.of(other)
        if one == two:
            return
        small, large = sorted((one, two), key=lambda name: len(self._members.get(name, ())))
        if large not in self._members:
            # Not named after its first point, which may leave the cache and come back with another answer.
            self.made += 1
            first, large = large, f"={self.made}"
            self._members[large] = {first}
            self._group[first] = large
        moved = self._members.pop(small, {small})
        for member in moved:
            self._group[member] = large
        self._members[large] |= moved

    def forget(self, point: str) -> None:
        """The point has left the cache."""
        group = self._group.pop(point, None)
        if group is not None:
            self._members[group].discard(point)
            if not self._members[group]:
                del self._members[group]

    def hear(self, point: str, votes: Sequence[Vote], likely: Mapping[str, float]) -> Mapping[str, bool]:
        """Links a new point by what the judge said; returns for each group whether its majority agrees with the new answer.

        `votes`: most similar first. `likely`: how probable agreement was thought to be, by the group's member that was the candidate.
        A single word for a group that nobody expected to agree links only where the judge is known to be clean.
        """
        heard: dict[str, list[Vote]] = defaultdict(list)
        for vote in votes:
            heard[self.of(vote.point)].append(vote)
        yes = {group: sum(v.agrees for v in said) for group, said in heard.items()}
        agree = {group: 2 * yes[group] > len(said) for group, said in heard.items()}
        clean = self._is_clean
        linkable = [
            group
            for group, said in heard.items()
            if agree[group] and (clean or yes[group] > 1 or max(likely.get(v.point, 0.0) for v in said) >= 0.3)
        ]
        if linkable:
            home = max(linkable, key=lambda group: 2 * yes[group] - len(heard[group]))
            self.link(point, heard[home][0].point)
            for group in linkable:
                if group != home and (clean or yes[group] > 1):
                    self.link(point, heard[group][0].point)
        self._measure(heard.values())
        return {v.point: agree[group] for group, said in heard.items() for v in said}

    @property
    def _is_clean(self) -> bool:
        noise = self.judge_noise
        return noise is not None and noise < _CLEAN

    def _measure(self, heard: Iterable[Sequence[Vote]]) -> None:
        for said in heard:
            if len(said) >= 3:
                yes = sum(v.agrees for v in said)
                self.votes += len(said)
                self.minority += min(yes, len(said) - yes)
