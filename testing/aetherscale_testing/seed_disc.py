"""A seed disc, read as a guest reads it."""

import io
from typing import BinaryIO

import pycdlib


def read_disc(disc: BinaryIO, names: str) -> dict[str, bytes]:
    """The files of a disc, by their Rock Ridge (`rr_path`) or Joliet (`joliet_path`) names."""
    iso, found = pycdlib.PyCdlib(), {}
    iso.open_fp(disc)
    for _, _, files in iso.walk(**{names: "/"}):
        for name in files:
            iso.get_file_from_iso_fp(content := io.BytesIO(), **{names: f"/{name}"})
            found[name] = content.getvalue()
    iso.close()
    return found
