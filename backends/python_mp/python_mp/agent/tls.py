"""Options that encrypt the connections between hosts; both sides show a certificate if told to."""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path


def add_to_exchange(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tls-certificate", type=Path, metavar="PEM", help="encrypt; the exchange's certificate")
    add("--tls-key", type=Path, metavar="PEM")
    add("--tls-client-ca", type=Path, metavar="PEM", help="whose certificates agents must have")


def of_exchange(ours: argparse.Namespace) -> ssl.SSLContext | None:
    """Raises OSError where a file cannot be read, ValueError where one is missing."""
    if (ours.tls_certificate is None) != (ours.tls_key is None):
        raise ValueError("TLS needs both --tls-certificate and --tls-key")
    if ours.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ours.tls_client_ca)
    context.load_cert_chain(ours.tls_certificate, ours.tls_key)
    if ours.tls_client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def add_to_agent(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tls-ca", type=Path, metavar="PEM", help="encrypt; who signed the exchange's certificate")
    add("--tls-certificate", type=Path, metavar="PEM", help="the agent's own, if the exchange asks")
    add("--tls-key", type=Path, metavar="PEM")


def of_agent(ours: argparse.Namespace) -> ssl.SSLContext | None:
    """As `of_exchange`."""
    if ours.tls_ca is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ours.tls_ca)
    if ours.tls_certificate:
        context.load_cert_chain(ours.tls_certificate, ours.tls_key)
    return context
