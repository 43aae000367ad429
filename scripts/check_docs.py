"""Check that the relative links of README.md, the other pages at the top and docs/**/*.md lead somewhere.

Usage: python scripts/check_docs.py. A link counts when its file exists and, where it names a section, that
page has the heading. Links with a scheme (https:, mailto:) are not looked at. Prints one line a broken link;
exit status 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
INLINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
LINK = re.compile(
    r"\]\(\s*<?([^\s)>]+)>?(?:\s+[\"'(][^)]*)?\s*\)"  # [text](target "title")
    r"|^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)"  # [name]: target
    r"|(?:href|src)=\"([^\"]+)\""
)
SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*:|//)")


def prose(text: str) -> list[tuple[int, str]]:
    """The numbered lines of a page that are not inside a fenced block."""
    lines, closing = [], ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if closing:
            if fence and fence[1].startswith(closing) and not line.strip().strip(closing[0]):
                closing = ""
        elif fence:
            closing = fence[1]
        else:
            lines.append((number, line))
    return lines


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page, and those that the page gives itself."""
    found: Counter[str] = Counter()
    names: set[str] = set()
    for _, line in prose(page.read_text(encoding="utf-8")):
        names.update(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", line))
        heading = re.match(r" {0,3}#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
            names.add(f"{slug}-{found[slug]}" if found[slug] else slug)
            found[slug] += 1
    return names


def broken(page: Path) -> list[str]:
    """One line per link of a page that leads nowhere."""
    complaints = []
    for number, line in prose(page.read_text(encoding="utf-8")):
        for groups in LINK.findall(INLINE_CODE.sub("", line)):
            link = next(filter(None, groups))
            if SCHEME.match(link):
                continue
            name, _, section = link.partition("#")
            target = (page.parent / unquote(name)).resolve() if name else page
            where = f"{page.relative_to(ROOT)}:{number}: {link}"
            if not target.is_relative_to(ROOT):
                complaints.append(f"{where} leaves the repository")
            elif not target.exists():
                complaints.append(f"{where} does not exist")
            elif section and target.suffix == ".md" and section not in anchors(target):
                complaints.append(f"{where} has no such heading")
    return complaints


def main() -> int:
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    complaints = [line for page in pages for line in broken(page)]
    print(*complaints, f"check_docs: {len(pages)} pages, {len(complaints)} broken links", sep="\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
