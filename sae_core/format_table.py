"""The table of formats and architectures in docs/formats.md, made from the readers themselves."""

from __future__ import annotations

from sae_core.loading import readers


def formats_markdown() -> str:
    """Markdown: one row for each architecture of each format, with how it is checked or why it is refused."""
    lines = [
        "| format | on disk | architecture | | checked against |",
        "|---|---|---|---|---|",
    ]
    for reader in readers():
        for row, architecture in enumerate(reader.ARCHITECTURES):
            format_cells = (reader.TITLE, f"`{reader.FILES}`") if row == 0 else ("", "")
            if architecture.refused:
                verdict, check = "refused", architecture.refused
            else:
                verdict, check = "read", f"{architecture.reference or reader.REFERENCE} (`{architecture.checked}`)"
            lines.append(f"| {' | '.join((*format_cells, architecture.name, verdict, check))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(formats_markdown(), end="")
