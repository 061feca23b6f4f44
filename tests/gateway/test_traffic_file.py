"""The traffic file as it changes: edited, replaced, swapped by a link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway import traffic_file
from gateway.traffic import Rules

NAME = "traffic.toml"


def rules(version: int) -> str:
    return f"[models.m]\nlabels = {{ stable = {version} }}\n"


def follow(file: Path, change: Callable[[], None], until: int) -> None:
    """Change the file once it is followed; return when the label points to `until`."""

    async def story() -> None:
        seen: asyncio.Queue[int] = asyncio.Queue(100)

        def take(told: Rules) -> None:
            seen.put_nowait(told["m"].labels["stable"])

        following = asyncio.create_task(traffic_file.follow(file, take))
        try:
            async with asyncio.timeout(10):
                await seen.get()  # the first look
                change()
                while await seen.get() != until:
                    pass
        finally:
            following.cancel()
            await asyncio.wait([following])

    asyncio.run(story())


def test_rules_that_changed_before_the_watch_began_are_seen(tmp_path: Path) -> None:
    file = tmp_path / NAME
    file.write_text(rules(1))

    async def story() -> None:
        await traffic_file.read(file)
        file.write_text(rules(2))
        seen: asyncio.Future[Rules] = asyncio.get_running_loop().create_future()
        following = asyncio.create_task(traffic_file.follow(file, seen.set_result))
        async with asyncio.timeout(10):
            assert (await seen)["m"].labels == {"stable": 2}
        following.cancel()
        await asyncio.wait([following])

    asyncio.run(story())


@pytest.mark.parametrize("folder", [".", ".venv"])
def test_a_file_that_is_replaced_is_read_again_in_any_folder(tmp_path: Path, folder: str) -> None:
    file = tmp_path / folder / NAME
    file.parent.mkdir(exist_ok=True)
    file.write_text(rules(1))

    def change() -> None:
        (file.parent / "new").write_text(rules(2))
        (file.parent / "new").replace(file)

    follow(file, change, until=2)


def test_a_mount_whose_link_is_swapped_is_read_again(tmp_path: Path) -> None:
    """A ConfigMap: the file leads to `..data`, and that to the newest folder."""
    for version in (1, 2):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / NAME).write_text(rules(version))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / NAME).symlink_to(f"..data/{NAME}")

    def change() -> None:
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    follow(tmp_path / NAME, change, until=2)
