"""Documents are read as text by a process that a hostile one cannot make large, slow or curious."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter

from exai.files.sources import documents
from tests.integration.sources.conftest import Tree, names, texts

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def pdf(*pages: str) -> bytes:
    """A file with one line of text on each page, written by hand."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        content = len(objects)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {font} /Contents {content} 0 R >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    data, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{content}\nendobj\n".encode()
    start = len(data)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    data += b"".join(f"{place:010} 00000 n \n".encode() for place in places)
    return data + f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()


def docx(body: str | bytes, **more: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", body)
        for name, content in more.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def document(inner: str) -> str:
    return f'<?xml version="1.0"?><w:document {WORD}><w:body>{inner}</w:body></w:document>'


def test_pages_of_a_pdf_are_read_with_their_numbers(tree: Tree) -> None:
    tree.write("spec.pdf", pdf("First page", "Second page"))
    read = tree.read("spec.pdf")
    assert texts(read) == {"spec.pdf": "[page 1]\nFirst page\n\n[page 2]\nSecond page\n"}
    assert read.read == ("spec.pdf (5 lines; text of 2 pages)",)
    assert texts(tree.read("spec.pdf:4-5"))["spec.pdf:4-5"] == "4\t[page 2]\nSecond page\n"


def test_directory_names_its_documents_without_reading_them(tree: Tree) -> None:
    tree.write("docs/spec.pdf", pdf("Text"))
    tree.write("docs/a.md")
    read = tree.read("docs")
    assert names(read) == ["docs/a.md"]
    assert read.left_out == ("docs/spec.pdf (document; name it to have its text read)",)


def test_encrypted_pdf_is_said(tree: Tree) -> None:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("Secret"))))
    writer.encrypt("password", algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    tree.write("a.pdf", buffer.getvalue())
    assert tree.read("a.pdf").left_out == ("a.pdf (encrypted)",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pdf("", ""), "without text, as a scan"),
        (pdf("Text")[:200], "damaged"),
        (b"%PDF-1.7\n" + b"\0\xff" * 5_000, "damaged"),
        (b"%PDF-1.4\n1 0 obj << /Type /Catalog /Pages 1 0 R >> endobj\ntrailer << /Root 1 0 R >>", ""),
    ],
)
def test_pdf_without_readable_text_is_said(tree: Tree, data: bytes, reason: str) -> None:
    tree.write("a.pdf", data)
    read = tree.read("a.pdf")
    assert read.read == ()
    assert reason in read.left_out[0]


def test_scan_names_the_way_to_its_text(tree: Tree) -> None:
    tree.write("a.pdf", pdf(""))
    (said,) = tree.read("a.pdf").left_out
    assert said.startswith("a.pdf (PDF of 1 page without text, as a scan; chat with a Kimi model reads it")


def test_docx_is_read_by_paragraphs_and_cells(tree: Tree) -> None:
    inner = (
        "<w:p><w:r><w:t>One</w:t><w:tab/><w:t xml:space='preserve'> two</w:t></w:r>"
        "<w:del><w:delText>gone</w:delText></w:del></w:p>"
        "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a &amp; ü</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
        '<mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
        "<mc:Fallback><w:p><w:t>twice</w:t></w:p></mc:Fallback></mc:AlternateContent>"
    )
    tree.write("a.docx", docx(document(inner)))
    read = tree.read("a.docx")
    assert texts(read) == {"a.docx": "One\t two\na & ü\n\t"}
    assert read.read == ("a.docx (3 lines; text)",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(tree: Tree, encoding: str) -> None:
    """Expanded they are a billion characters, or the content of a local file."""
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "text">{lines}<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    head = f'<?xml version="1.0" encoding="{encoding}"?>{bomb}'
    body = f"{head}<w:document {WORD}><w:p><w:t>&e9;&f;</w:t></w:p></w:document>"
    tree.write("a.docx", docx(body.encode(encoding)))
    read = tree.read("a.docx")
    assert read.contents == ()
    assert read.left_out == ("a.docx (docx with a document type, which no program writes)",)


def test_zip_bomb_is_refused(tree: Tree) -> None:
    """40 MB of blanks in 40 kB, of which no more than the limit is unpacked."""
    data = docx(document("<w:p>" + " " * 40_000_000 + "<w:t>text</w:t></w:p>"))
    assert len(data) < 100_000
    tree.write("a.docx", data)
    assert tree.read("a.docx").left_out == ("a.docx (docx with more than 16,777,216 bytes unpacked)",)


@pytest.mark.parametrize(
    "data",
    [
        docx("not XML"),
        docx(document("<w:p>") + "<"),
        b"PK\x03\x04" + b"\0" * 100,
        docx(document("<w:p/>")),
        b"",
    ],
)
def test_docx_without_readable_text_is_said(tree: Tree, data: bytes) -> None:
    tree.write("a.docx", data)
    read = tree.read("a.docx")
    assert read.contents == ()
    assert read.left_out or read.read == ("a.docx (empty)",)


def test_text_that_is_only_called_a_document_is_read_as_text(tree: Tree) -> None:
    tree.write("a.pdf", "plain\n")
    assert texts(tree.read("a.pdf")) == {"a.pdf": "plain\n"}


def test_process_that_does_not_end_is_ended(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of the reading; here a program in the place of the reader of documents."""
    program = tmp_path / "endless.py"
    program.write_text(f"open({str(tmp_path / 'started')!r}, 'w').close()\nwhile True: pass\n")
    monkeypatch.setattr(documents.extraction, "__file__", str(program))
    tree.write("a.pdf", pdf("Text"))
    tree.bounds.clock = lambda: 9.0 if (tmp_path / "started").exists() else 0.0
    tree.bounds.end_s = 5.0
    assert tree.read("a.pdf").left_out == ("a.pdf (pdf that takes too long to read)",)


def test_without_its_package_a_pdf_names_the_cure(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pypdf.py").write_text("raise ImportError\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    tree.write("a.pdf", pdf("Text"))
    assert 'pip install "exai[documents]"' in tree.read("a.pdf").left_out[0]


def test_reader_of_documents_sees_no_key_of_the_daemon(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "shows.py"
    program.write_text("import json, os\nprint(json.dumps({'text': ' '.join(sorted(os.environ)), 'note': 'names'}))\n")
    monkeypatch.setattr(documents.extraction, "__file__", str(program))
    monkeypatch.setenv("EXAI_PROVIDERS__KIMI__API_KEY", "secret")
    tree.write("a.pdf", pdf("Text"))
    assert "EXAI" not in texts(tree.read("a.pdf"))["a.pdf"]
