"""The lanes of a diagram: tasks that share something stand together, and of many tasks some share a lane."""

from collections.abc import Collection, Sequence

LANES = 14
"""Tasks with a lane each; of more some are told as how many they are."""
Users = frozenset[str]


def fold(tasks: Sequence[str], users: Collection[Users]) -> list[tuple[str, ...]]:
    """Lanes: tasks that share something are neighbours, and of many tasks some get a lane together.

    Args:
        tasks: names.
        users: of everything there is.
    """
    sets = sorted({found for found in users if 1 < len(found) < len(tasks)}, key=lambda found: (-len(found), sorted(found)))
    ordered = neighbours(list(tasks), sets)
    if len(tasks) <= LANES:
        return [(task,) for task in ordered]
    groups: list[list[str]] = []
    marks: list[tuple[bool, ...]] = []
    for task in ordered:
        mark = tuple(task in found for found in sets)
        if marks and marks[-1] == mark:
            groups[-1].append(task)
        else:
            groups.append([task])
            marks.append(mark)
    if len(groups) > LANES // 3:
        return [*((task,) for task in ordered[: LANES - 2]), tuple(ordered[LANES - 2 :])]
    single = max(1, (LANES - 2) // len(groups) - 1)
    lanes: list[tuple[str, ...]] = []
    for group in groups:
        cut = len(group) if len(group) <= single + 1 else single
        lanes += [(task,) for task in group[:cut]]
        lanes += [tuple(group[cut:])] if group[cut:] else []
    return lanes


def neighbours(tasks: list[str], sets: Sequence[Users]) -> list[str]:
    """An order in which the tasks of each set stand together, as far as that goes; larger sets first."""
    if not sets:
        return tasks
    first, *rest = sets
    inside = [task for task in tasks if task in first]
    outside = [task for task in tasks if task not in first]
    if not inside or not outside:
        return neighbours(tasks, rest)
    parts = [neighbours(inside, rest), neighbours(outside, rest)]
    return [task for part in sorted(parts, key=lambda part: tasks.index(part[0])) for task in part]
