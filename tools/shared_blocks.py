"""Keep the blocks that several scripts share equal to the letter.

A block stands between two comment lines, `# [shared: NAME]` and `# [/shared]`.

    python tools/shared_blocks.py                  fail, and show how, where copies differ
    python tools/shared_blocks.py --write FILE     copy FILE's blocks to the other scripts
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^# \[shared: (?P<name>[^\]\n]+)\]\n(?P<text>.*?)^# \[/shared\]\n", re.M | re.S)


def read_blocks(source: str, where: str) -> dict[str, str]:
    """Each block's text by its name; ValueError for a lone marker or a name used twice."""
    blocks: dict[str, str] = {}
    for match in BLOCK.finditer(source):
        name, text = match["name"], match["text"]
        if name in blocks:
            raise ValueError(f"{where} has the block {name!r} twice")
        blocks[name] = text
    markers = len(re.findall(r"^# \[/?shared", source, re.M))
    if markers != 2 * len(blocks) or any("# [shared" in text for text in blocks.values()):
        raise ValueError(f"{where} has a marker without its partner")
    return blocks


def differences(sources: dict[str, str]) -> list[str]:
    """A diff for every copy that is not the text of the first script that has the block."""
    first: dict[str, tuple[str, str]] = {}
    diffs = []
    for where, source in sources.items():
        for name, text in read_blocks(source, where).items():
            origin, original = first.setdefault(name, (where, text))
            if text != original:
                lines = original.splitlines(True), text.splitlines(True)
                diff = difflib.unified_diff(*lines, f"{origin} [{name}]", f"{where} [{name}]")
                diffs.append("".join(diff))
    return diffs


def rewrite(source: str, blocks: dict[str, str]) -> str:
    """The source with each of its blocks replaced by the one of that name, where there is one."""

    def replace(match: re.Match[str]) -> str:
        text = blocks.get(match["name"], match["text"])
        return f"# [shared: {match['name']}]\n{text}# [/shared]\n"

    return BLOCK.sub(replace, source)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).parent.parent
    parser.add_argument("--write", type=Path, metavar="FILE", help="the script to copy from")
    parser.add_argument("--root", type=Path, default=root, help="folder of the scripts")
    args = parser.parse_args()
    paths = sorted(args.root.glob("*.py"))
    try:
        if args.write:
            blocks = read_blocks(args.write.read_text(), str(args.write))
            for path in paths:
                read_blocks(path.read_text(), path.name)
                path.write_text(rewrite(path.read_text(), blocks))
        diffs = differences({path.name: path.read_text() for path in paths})
    except (OSError, ValueError) as error:
        print(f"shared_blocks: {error}", file=sys.stderr)
        return 2
    print("\n".join(diffs) or f"shared blocks are equal in {len(paths)} scripts")
    return 1 if diffs else 0


if __name__ == "__main__":
    sys.exit(main())
