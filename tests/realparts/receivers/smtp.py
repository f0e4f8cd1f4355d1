#!/usr/bin/env python3
"""A mail server with TLS: usage smtp.py DIR PORT_OF_STARTTLS PORT_OF_TLS USER PASSWORD.

Both ports want TLS and a login. What is taken is a file in DIR/mail, named by its Message-ID, as it came, below the envelope.
Recipients called later@ are refused for the time being (451), those called never@ for good (550).
"""

import asyncio
import re
import ssl
import sys
from pathlib import Path

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

directory, starttls_port, tls_port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
user, password = (word.encode() for word in sys.argv[4:6])


class Store:
    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("later@"):
            return "451 4.7.1 come again later"
        if address.startswith("never@"):
            return "550 5.1.1 there is no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 taken"

    async def handle_DATA(self, server, session, envelope):
        found = re.search(rb"^Message-ID: *<([^>\r\n]+)>", envelope.content, re.MULTILINE | re.IGNORECASE)
        name = found[1].decode() if found else "without-an-id"
        number = len(list((directory / "mail").glob(f"{name}.*")))
        cipher = server.transport.get_extra_info("cipher")
        head = f"TLS: {cipher[1] if cipher else 'none'}\n"
        head += f"MAIL FROM: {envelope.mail_from}\nRCPT TO: {', '.join(envelope.rcpt_tos)}\n\n"
        part = directory / "mail" / f".{name}.{number}"
        part.write_bytes(head.encode() + envelope.content)
        part.rename(directory / "mail" / f"{name}.{number}")
        return f"250 2.0.0 kept as {name}.{number}"


def authenticate(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (user, password)
    return AuthResult(success=good, handled=False if not good else True)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(directory / "server.pem", directory / "server.key")
common = dict(authenticator=authenticate, auth_required=True, hostname="localhost")


async def serve() -> None:
    loop = asyncio.get_running_loop()
    upgraded = lambda: SMTP(Store(), tls_context=context, require_starttls=True, **common)
    # The way is encrypted before the first word, so a login needs no STARTTLS.
    encrypted = lambda: SMTP(Store(), auth_require_tls=False, **common)
    await loop.create_server(upgraded, "127.0.0.1", starttls_port)
    await loop.create_server(encrypted, "127.0.0.1", tls_port, ssl=context)
    await asyncio.Event().wait()


asyncio.run(serve())
