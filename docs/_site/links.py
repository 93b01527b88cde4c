"""mkdocs hook: documents at the top of the checkout are pages, and links that leave docs/ lead to copies in the site.

In a checkout README.md links to docs/memory.md, and docs/memory.md to ../results/depo/nano.json. In the site README.md
is index.md, pictures and cards are copied as they are, and other files of the checkout are pages that show them.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {  # of the top of the checkout, by their names in the site
    "README.md": "index.md",
    **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "SECURITY.md")},
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))|(```.*?```)", re.DOTALL)
AS_THEY_ARE = {".json", ".png", ".svg"}
LANGUAGES = {".py": "python", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for file in files.documentation_pages():
        for target in _targets(file):
            _add(target, files, config)
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri

    def changed(found: re.Match[str]) -> str:
        if found[4] or (target := _target(found[2], here)) is None:
            return found[0]
        path, anchor = target
        return f"{found[1]}{relpath(_in_site(path), PurePosixPath(here).parent.as_posix())}{anchor}{found[3]}"

    return markdown if here.startswith("source/") else LINK.sub(changed, markdown)


def _targets(file: File) -> set[Path]:
    text = file.content_string if file.generated_by else Path(file.abs_src_path or "").read_text(encoding="utf-8")
    found = (_target(match[2], file.src_uri) for match in LINK.finditer(text) if not match[4])
    return {target[0] for target in found if target is not None}


def _target(link: str, page: str) -> tuple[Path, str] | None:
    """The file of the checkout that a link of a page leads to, and the anchor; None if it leads to none."""
    path, hash_sign, anchor = link.partition("#")
    if not path or "://" in path:
        return None
    top = {in_site: name for name, in_site in PAGES.items()}
    target = ((ROOT / top[page] if page in top else ROOT / "docs" / page).parent / path).resolve()
    return (target.relative_to(ROOT), hash_sign + anchor) if target.is_file() else None


def _in_site(path: Path) -> str:
    name = path.as_posix()
    if name in PAGES:
        return PAGES[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return name if path.suffix in AS_THEY_ARE else f"source/{name}.md"


def _add(path: Path, files: Files, config: MkDocsConfig) -> None:
    uri = _in_site(path)
    if files.get_file_from_path(uri):
        return
    if path.suffix in AS_THEY_ARE:
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
        return
    code = (ROOT / path).read_text(encoding="utf-8").rstrip()
    found = "" if path.parts[0] == "examples" else "---\nsearch:\n  exclude: true\n---\n\n"
    content = f"{found}# {path}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{code}\n````\n"
    files.append(File.generated(config, uri, content=content))
