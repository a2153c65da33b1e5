"""Known ways of making two programs read one connection differently: what is sent is refused, or
means the same to all (to us, and as we pass it on, to llhttp and h11).

Where each is from:

* *Klein*: A. Klein, "HTTP Request Smuggling in 2020" (Black Hat USA 2020)
* *Linhart*: Linhart, Klein, Heled, Orrin, "HTTP Request Smuggling" (Watchfire, 2005)
* *Kettle*: J. Kettle, "HTTP Desync Attacks" (2019), "Browser-Powered Desync Attacks" (2022),
  "HTTP/1.1 must die" (2025); a name is that of PortSwigger/http-request-smuggler's permutation
* *Probe*: the test of that name in MDA2AV/Http11Probe
* *Funky chunks*: w4ke.info/2025/06/18/funky-chunks.html
* *Garden*: Kallus and others, "The HTTP Garden" (arXiv 2405.17737)
* *Davison*: "Abusing HTTP hop-by-hop request headers", "HAProxy HTTP request smuggling" (2019,
  nathandavison.com)
* *h2c*: J. Miller, "h2c Smuggling" (Bishop Fox, 2020)
* CVE, VSV and GHSA numbers; issues of repositories; sections of RFCs
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.codecs.http1 import (
    Http1,
    Message,
    Reading,
    read_request_with_h11,
    read_response_with_h11,
    read_with_llhttp,
)

POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
FIVE = b"Content-Length: 5\r\n"
LAST = b"0\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """``status``: it is refused with that, behind ``bodies``; else these are all that there is."""

    source: str
    data: bytes
    status: int = 0
    bodies: tuple[bytes, ...] = ()


def refused(source: str, data: bytes, *bodies: bytes, status: int = 400) -> Case:
    return Case(source, data, status, bodies)


def harmless(source: str, data: bytes, *bodies: bytes) -> Case:
    return Case(source, data, 0, bodies or (b"",))


def chunks(lines: bytes) -> bytes:
    return POST + CHUNKED + b"\r\n" + lines


def coded(value: bytes) -> bytes:
    return POST + b"Transfer-Encoding: " + value + b"\r\n\r\n" + LAST


def long(value: bytes) -> bytes:
    return POST + b"Content-Length: " + value + b"\r\n\r\nhello"


LENGTH_AND_CODING = [
    refused("Kettle 2019, CL.TE", POST + b"Content-Length: 6\r\n" + CHUNKED + b"\r\n0\r\n\r\nG"),
    refused("Kettle 2019, TE.CL", POST + CHUNKED + b"Content-Length: 4\r\n\r\n5c\r\nGPOST"),
    refused("Probe CLTE-PIPELINE", POST + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n" + LAST),
    refused("Probe CL-TE-BOTH: equal", POST + FIVE + CHUNKED + b"\r\n" + LAST),
    refused(
        "openlitespeed#392", POST + b"Content-Length: 0\r\n" + CHUNKED + b"\r\n20\r\n" + SMUGGLED
    ),
    refused("Probe CLTE-CONN-CLOSE", POST + FIVE + CHUNKED + b"Connection: close\r\n\r\n" + LAST),
    refused("Linhart: two lengths", POST + b"Content-Length: 0\r\n" + FIVE + b"\r\nhello"),
    refused("Probe DUPLICATE-CL: equal", POST + FIVE + FIVE + b"\r\nhello"),
    refused(
        "CVE-2023-40225: an empty one first", POST + b"Content-Length:\r\n" + FIVE + b"\r\nhello"
    ),
    refused("haproxy#2237", long(b"")),
    refused("Probe CL-COMMA-SAME", long(b"5, 5")),
    refused("Probe CL-COMMA-DIFFERENT", long(b"5, 10")),
    refused("CVE-2021-32715, CVE-2023-40167", long(b"+5")),
    refused("CVE-2023-38697, CVE-2022-24761", long(b"0x5")),
    refused("Probe CL-NEGATIVE", long(b"-1")),
    refused("Probe CL-NEGATIVE-ZERO", long(b"-0")),
    refused("Probe CL-UNDERSCORE", long(b"1_0")),
    refused("Probe CL-OCTAL", long(b"0o5")),
    refused("Probe CL-INTERNAL-SPACE", long(b"1 0")),
    refused("Klein: junk behind it", long(b"5abc")),
    refused("Klein: CR in front of it", POST + b"Content-Length: \r5\r\n\r\nhello"),
    refused("Probe CL-OVERFLOW", long(b"18446744073709551621")),
    refused("2^63", long(b"9223372036854775808")),
    harmless("Probe CL-LEADING-ZEROS", long(b"005"), b"hello"),
    harmless("Probe CL-TRAILING-SPACE", long(b" \t5 \t"), b"hello"),
    harmless("Probe CL-DOUBLE-ZERO", POST + b"Content-Length: 00\r\n\r\n"),
    harmless(
        "CVE-2021-40346",
        POST + b"Content-Length0" + b"a" * 255 + b": 0\r\n" + FIVE + b"\r\nhello",
        b"hello",
    ),
    harmless("Probe GET-CL-BODY-DESYNC", GET + b"Content-Length: 35\r\n\r\n" + SMUGGLED, SMUGGLED),
    harmless("Kettle 2022, CL.0", POST + b"Content-Length: 35\r\n\r\n" + SMUGGLED, SMUGGLED),
    harmless("Probe HEAD-CL-BODY", b"HEAD" + GET[3:] + FIVE + b"\r\nhello", b"hello"),
    harmless("Probe OPTIONS-CL-BODY", b"OPTIONS" + GET[3:] + FIVE + b"\r\nhello", b"hello"),
    harmless(
        "Kettle 2025, 0.CL: Expect",
        POST + b"Expect: 100-continue\r\n" + FIVE + b"\r\nhello",
        b"hello",
    ),
    refused(
        "Kettle 2025, obfuscated Expect",
        POST + b"Expect: y 100-continue\r\n" + FIVE + b"\r\n",
        status=417,
    ),
    refused("TRACE with a body (RFC 9110, 9.3.8)", b"TRACE" + GET[3:] + FIVE + b"\r\nhello"),
]
CODINGS = [
    refused("Probe TE-XCHUNKED", coded(b"xchunked"), status=501),
    refused("Probe TE-IDENTITY", coded(b"identity"), status=501),
    refused("Kettle, commaCow", coded(b"chunked, identity")),
    refused("Kettle, cowComma; CVE-2022-32213", coded(b"identity, chunked"), status=501),
    refused("Kettle, nested", coded(b"identity, chunked, identity")),
    refused("Kettle, lazygrep", coded(b"chunk"), status=501),
    refused("Kettle, quoted", coded(b'"chunked"')),
    refused("Kettle, aposed", coded(b"'chunked'"), status=501),
    refused("Kettle, accentCH", coded(b"ch\x96nked")),
    refused("Kettle, unispace", POST + b"Transfer-Encoding:\xa0chunked\r\n\r\n" + LAST),
    refused("Kettle, spaceFF", POST + b"Transfer-Encoding:\xffchunked\r\n\r\n" + LAST),
    refused("Davison, CVE-2019-18277", coded(b"\x0bchunked")),
    refused("CVE-2019-16789", coded(b"chunked\x0b")),
    refused("Probe TE-FORMFEED", coded(b"\x0cchunked")),
    refused("Probe TE-NULL", coded(b"chunked\x00")),
    refused("Kettle, suffix1:127", coded(b"chunked\x7f")),
    refused("Kettle, 0dsuffix", coded(b"chunked\r")),
    refused("Probe TE-DOUBLE-CHUNKED", coded(b"chunked, chunked")),
    refused("Probe TE-DUPLICATE-HEADERS", POST + CHUNKED + CHUNKED + b"\r\n" + LAST),
    refused(
        "Kettle, dualchunk; CVE-2024-1135",
        POST + CHUNKED + b"Transfer-encoding: identity\r\n\r\n" + LAST,
    ),
    refused(
        "Kettle, revdualchunk",
        POST + b"Transfer-Encoding: identity\r\n" + CHUNKED + b"\r\n",
        status=501,
    ),
    refused("Probe TE-NOT-FINAL-CHUNKED", coded(b"chunked, gzip")),
    refused("Probe TE-EMPTY-VALUE", coded(b"")),
    refused("Probe TE-LEADING-COMMA", coded(b", chunked")),
    refused("Probe TE-TRAILING-COMMA", coded(b"chunked,")),
    refused("Probe CHUNKED-WITH-PARAMS", coded(b"chunked;ext=val")),
    refused("Probe TE-HTTP10", b"POST / HTTP/1.0\r\nHost: x\r\n" + CHUNKED + b"\r\n" + LAST),
    refused(
        "Probe TE-SP-BEFORE-COLON, CVE-2021-22959", POST + b"Transfer-Encoding : chunked\r\n\r\n"
    ),
    refused("Kettle, tab before the colon", POST + b"Transfer-Encoding\t: chunked\r\n\r\n"),
    refused("Probe TE-OBS-FOLD, CVE-2022-32215", POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n"),
    refused("Kettle, tabwrap", POST + b"Transfer-Encoding: \r\n\tchunked\r\n\r\n"),
    refused("Kettle, linewrapped1", POST + b"Transfer-Encoding:\n chunked\r\n\r\n"),
    refused("Kettle, gareth1", POST + b"Transfer-Encoding\n : chunked\r\n\r\n"),
    refused("Kettle, vertwrap", POST + b"Transfer-Encoding: \n\x0bchunked\r\n\r\n"),
    refused("Kettle, nameprefix1", POST + b"Foo: bar\r\n Transfer-Encoding: chunked\r\n\r\n"),
    refused("Kettle, badsetupCR", POST + b"Foo: bar\rTransfer-Encoding: chunked\r\n\r\n"),
    refused("Kettle, badsetupLF", POST + b"Foo: bar\nTransfer-Encoding: chunked\r\n\r\n"),
    refused("Kettle, 0dwrap", POST + b"Foo: bar\r\n\rTransfer-Encoding: chunked\r\n\r\n"),
    refused("Kettle, 0dspam", POST + b"Tra\rnsfer-Encoding: chunked\r\n\r\n"),
    refused(
        "Kettle, badwrap", b"POST / HTTP/1.1\r\n Transfer-Encoding: chunked\r\nHost: x\r\n\r\n"
    ),
    refused("Kettle, bodysplit", POST + b"Foo: bar\n\nTransfer-Encoding: chunked\r\n\r\n"),
    refused(
        "Kettle, underjoin1; Probe TRANSFER-ENCODING-UNDERSCORE",
        POST + b"Transfer_Encoding: chunked\r\n\r\n",
    ),
    refused("Kettle, spacejoin1", POST + b"Transfer Encoding: chunked\r\n\r\n"),
    refused("Klein, Kettle, spjunk", POST + b"Transfer-Encoding x: chunked\r\n\r\n"),
    refused("Klein, Kettle, backslash", POST + b"Transfer\\Encoding: chunked\r\n\r\n"),
    refused("Kettle, accentTE", POST + b"Transf\x82r-Encoding: chunked\r\n\r\n"),
    refused("Kettle, h2colon", POST + b"Transfer-Encoding`chunked : chunked\r\n\r\n"),
    harmless(
        "Kettle, encode", POST + b"Transfer-%45ncoding: chunked\r\n" + FIVE + b"\r\n" + LAST, LAST
    ),
    harmless(
        "Kettle, contentEnc", POST + b"Content-Encoding: chunked\r\n" + FIVE + b"\r\n" + LAST, LAST
    ),
    harmless("Kettle, UPPERCASE", POST + CHUNKED.upper() + b"\r\n" + LAST),
    harmless(
        "Kettle, multiCase; GHSA-mp2g-9vg9-f4cg",
        POST + b"tRANSFER-ENCODING: ChUnKeD\r\n\r\n" + LAST,
    ),
    harmless("Kettle, nospace1", POST + b"Transfer-Encoding:chunked\r\n\r\n" + LAST),
    harmless("Kettle, tabsuffix; Probe TE-TAB-BEFORE-VALUE", coded(b"\tchunked\t")),
    harmless(
        "Kettle, connection", POST + b"Connection: Transfer-Encoding\r\n" + CHUNKED + b"\r\n" + LAST
    ),
]
CHUNKS = [
    refused("CVE-2025-22871: the size ends with LF", chunks(b"5\nhello\r\n" + LAST)),
    refused("CVE-2025-55315, TERM.EXT", chunks(b"1;\n\r\nx\r\n" + LAST)),
    refused("Probe CHUNK-EXT-LF, fasthttp#1899", chunks(b"5;a\nb\r\nhello\r\n" + LAST)),
    refused("Funky chunks, EXT.TERM with CR", chunks(b"5;\rx\r\nhello\r\n" + LAST)),
    refused("CVE-2025-58056, CR CR", chunks(b"5;a\r\r\nhello\r\n" + LAST)),
    refused(
        "Funky chunks, TERM.SPILL with LF",
        chunks(b"5\r\nhello\n" + LAST),
    ),
    refused("Funky chunks, SPILL.TERM with CR", chunks(b"5\r\nhello\r" + LAST)),
    refused("Funky chunks, ZERO.TWO", chunks(b"5\r\nhello" + LAST)),
    refused("CVE-2025-43859: two other bytes", chunks(b"5\r\nhelloXX" + LAST)),
    refused("Probe CHUNK-SPILL", chunks(b"5\r\nhello!!\r\n" + LAST)),
    refused("Probe CHUNK-HEX-PREFIX, CVE-2022-24761", chunks(b"0x5\r\nhello\r\n" + LAST)),
    refused("Probe CHUNK-SIZE-PLUS, CVE-2023-38697", chunks(b"+5\r\nhello\r\n" + LAST)),
    refused("Probe CHUNK-NEGATIVE", chunks(b"-1\r\nhello\r\n" + LAST)),
    refused("Probe CHUNK-UNDERSCORE", chunks(b"1_0\r\nhello world ok ok\r\n" + LAST)),
    refused("Probe CHUNK-LEADING-SP", chunks(b" 5\r\nhello\r\n" + LAST)),
    refused("Probe CHUNK-SIZE-TRAILING-OWS", chunks(b"5 \r\nhello\r\n" + LAST)),
    refused("Probe CHUNK-BARE-SEMICOLON", chunks(b"5;\r\nhello\r\n" + LAST)),
    refused("Probe CHUNK-EXT-CTRL", chunks(b"5;a\x00\r\nhello\r\n" + LAST)),
    refused("Probe CHUNK-EXT-INVALID-TOKEN", chunks(b"5;a[b\r\nhello\r\n" + LAST)),
    refused(
        "Probe CHUNK-SIZE-OVERFLOW, CVE-2021-32714",
        chunks(b"10000000000000005\r\nhello\r\n" + LAST),
    ),
    refused(
        "CVE-2023-39326, CVE-2024-21647", chunks(b"5;a=" + b"b" * 4096 + b"\r\nhello\r\n" + LAST)
    ),
    refused("Klein: junk behind the size", chunks(b"5xyz\r\nhello\r\n" + LAST)),
    refused("Probe CHUNK-BARE-CR-TERM", chunks(b"5\rhello\r\n" + LAST)),
    refused("no size", chunks(b"\r\n" + LAST)),
    refused("Probe CHUNK-LF-TERM", chunks(b"0\r\n\n")),
    refused("Probe CHUNK-LF-TRAILER", chunks(b"0\r\nT: u\n\r\n")),
    refused("CVE-2023-40175, CVE-2023-45648", chunks(b"0\r\nT u\r\n\r\n" + SMUGGLED)),
    refused("CVE-2023-45648: a control character", chunks(b"0\r\nT: \x01\r\n\r\n" + SMUGGLED)),
    refused("Probe TRAILER-CL", chunks(b"0\r\nContent-Length: 5\r\n\r\n")),
    refused("Probe TRAILER-TE", chunks(b"0\r\nTransfer-Encoding: chunked\r\n\r\n")),
    refused("Probe TRAILER-HOST", chunks(b"0\r\nHost: evil\r\n\r\n")),
    harmless("Probe TRAILER-AUTH", chunks(b"0\r\nAuthorization: evil\r\n\r\n")),
    harmless("Probe TRAILER-CONTENT-TYPE", chunks(b"0\r\nContent-Type: evil\r\n\r\n")),
    harmless(
        "zeros and extensions", chunks(b'0005;a;b=c;d="e;\\"f"\r\nhello\r\n000;z\r\n\r\n'), b"hello"
    ),
    harmless("a request in a chunk", chunks(b"23\r\n" + SMUGGLED + b"\r\n" + LAST), SMUGGLED),
    refused("behind the last chunk", chunks(LAST + b"x\x00\r\n\r\n"), b""),
]
HEADS = [
    refused("CVE-2022-32214: LF", b"POST / HTTP/1.1\nHost: x\n\n" + SMUGGLED),
    refused("CVE-2019-16785", POST + FIVE + b"X-Header: x\nContent-Length: 0\r\n\r\nhello"),
    refused("CVE-2023-30589: CR alone", POST + b"X: y\rContent-Length: 35\r\n\r\n" + SMUGGLED),
    refused("CVE-2023-25725: no name", POST + b": x\r\n" + FIVE + b"\r\nhello"),
    refused("gudifu-fuzzer#4", POST + b":\r\n" + FIVE + b"\r\nhello"),
    refused("CVE-2019-20444: no colon", POST + b"X-Header\r\n" + FIVE + b"\r\nhello"),
    refused("tiny-http#173", POST + b"Content-Length : 5\r\n\r\nhello"),
    refused("names as CGI has them", POST + b"Content_Length: 5\r\n\r\nhello"),
    refused("Probe CONTROL-CHARS-HEADER", GET + b"X: a\x00b\r\n\r\n"),
    refused("Garden: CR before the end", GET + b"X: whatever \t\r\r\n\r\n"),
    refused("Probe WHITESPACE-BEFORE-HEADERS", b"GET / HTTP/1.1\r\n Host: x\r\n\r\n"),
    refused("Probe OBS-FOLD", GET + b"X: a\r\n b\r\n\r\n"),
    refused("Linhart: a blank line of spaces", GET + b" \r\nX: y\r\n\r\n"),
    refused("Probe CR-ONLY-LINE-ENDING", b"GET / HTTP/1.1\rHost: x\r\r" + SMUGGLED),
    refused("HTTP/0.9", b"GET /\r\n" + SMUGGLED),
    refused("HTTP/0.9, by its number", b"GET / HTTP/0.9\r\nHost: x\r\n\r\n", status=505),
    refused("Probe H2-PREFACE", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", status=505),
    refused("a version that is none", b"GET / HTTP/1.1.1\r\nHost: x\r\n\r\n"),
    refused("Klein: a version in the target", b"GET / HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n"),
    refused("two spaces", b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n"),
    refused("no target", b"GET HTTP/1.1\r\nHost: x\r\n\r\n"),
    refused("CVE-2023-45539: a fragment", b"GET /a#/b HTTP/1.1\r\nHost: x\r\n\r\n"),
    refused("not ASCII", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"),
    harmless("Probe LEADING-CRLF", b"\r\n" + GET + b"\r\n"),
    refused("more than one", b"\r\n\r\n" + GET + b"\r\n"),
    harmless("Connection: close, and more", GET + b"Connection: close\r\n\r\n" + SMUGGLED),
    harmless("HTTP/1.0, and more", b"GET / HTTP/1.0\r\nHost: x\r\n\r\n" + SMUGGLED),
    harmless("Probe PIPELINE-SAFE", GET + b"\r\n" + SMUGGLED, b"", b""),
]
HOSTS = [
    refused("Probe DUPLICATE-HOST", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    refused("Probe DUPLICATE-HOST-SAME", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    refused("Probe MISSING-HOST", b"GET / HTTP/1.1\r\n\r\n"),
    refused("Probe HOST-EMPTY-VALUE", b"GET / HTTP/1.1\r\nHost: \r\n\r\n"),
    refused("Probe MULTIPLE-HOST-COMMA", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    refused("Probe HOST-WITH-PATH", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    refused("Probe HOST-WITH-USERINFO", b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    refused("Kettle: a port that is none", b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n"),
    refused("a space in it", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    refused("folded", b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n"),
    refused("absolute, without Host", b"GET http://a/ HTTP/1.1\r\n\r\n"),
    refused("absolute, with a user", b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("absolute, of another scheme", b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("absolute, without a host", b"GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("absolute, with a backslash", b"GET http://a\\b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("VSV00018: a query and no path", b"GET http://a?/admin HTTP/1.1\r\nHost: a\r\n\r\n"),
    harmless("VSV00018: no path", b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n"),
    harmless("Probe ABSOLUTE-URI-HOST-MISMATCH", b"GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"),
    harmless("RFC 9112, 3.2.4", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("* of another method", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    refused("a target that is a name", b"GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
]
ANSWERS = [
    refused("CL and TE", b"HTTP/1.1 200 OK\r\n" + FIVE + CHUNKED + b"\r\n" + LAST),
    refused("TE and CL", b"HTTP/1.1 200 OK\r\n" + CHUNKED + FIVE + b"\r\n" + LAST),
    refused("two lengths", b"HTTP/1.1 200 OK\r\n" + FIVE + FIVE + b"\r\nhello"),
    refused("a list", b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello"),
    refused("a sign", b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"),
    refused("empty", b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello"),
    refused("too large", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello"),
    refused(
        "gzip, chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + LAST,
        status=501,
    ),
    refused("chunked, gzip", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n" + LAST),
    refused("twice", b"HTTP/1.1 200 OK\r\n" + CHUNKED + CHUNKED + b"\r\n" + LAST),
    refused("\\x0bchunked", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n" + LAST),
    refused("chunks in HTTP/1.0", b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n" + LAST),
    refused("a space before the colon", b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello"),
    refused("folded", b"HTTP/1.1 200 OK\r\nContent-Length:\r\n 5\r\n\r\nhello"),
    refused("LF", b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"),
    refused("CR", b"HTTP/1.1 200 OK\r\nX: a\rContent-Length: 5\r\n\r\nhello"),
    refused("NUL", b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 0\r\n\r\n"),
    refused("VSV00009: the reason", b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n"),
    refused(
        "LF behind a chunk's size", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n5\nhello\r\n" + LAST
    ),
    refused(
        "too much in a chunk", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n5\r\nhello!\r\n" + LAST
    ),
    refused(
        "a length among trailers", b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n0\r\n" + FIVE + b"\r\n"
    ),
    refused("1xx with a length", b"HTTP/1.1 103 Early Hints\r\n" + FIVE + b"\r\nhello"),
    refused("1xx with chunks", b"HTTP/1.1 100 Continue\r\n" + CHUNKED + b"\r\n" + LAST),
    refused(
        "h2c: 101 that nobody asked for",
        b"HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    ),
    refused("HTTP/2.0", b"HTTP/2.0 200 OK\r\n\r\n", status=505),
    refused("no version", b"200 OK\r\n\r\n"),
    refused("a status of four digits", b"HTTP/1.1 2000 OK\r\n\r\n"),
    harmless("204 with a body", b"HTTP/1.1 204 No Content\r\n" + FIVE + b"\r\nhello"),
    harmless("204 with chunks", b"HTTP/1.1 204 No Content\r\n" + CHUNKED + b"\r\n" + LAST),
    refused("304 with a body", b"HTTP/1.1 304 Not Modified\r\n" + FIVE + b"\r\nhello", b""),
    refused("too much", b"HTTP/1.1 200 OK\r\n" + FIVE + b"\r\nhello!", b"hello"),
    harmless(
        "no length, and an answer in it",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ),
]


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.source for case in cases])


def check_outcome(reading: Reading, case: Case) -> None:
    assert reading.error != "cut off"  # more is to come, which nobody has judged
    assert reading.status == case.status, reading.error
    assert tuple(message.body for message in reading.complete) == case.bodies


def check_passed_on(mine: Message, passed: bytes) -> None:
    for theirs in (read_with_llhttp(passed), read_request_with_h11(passed)):
        assert not theirs.error
        (other,) = theirs.complete
        assert (other.method, other.target, other.body) == (mine.method, mine.target, mine.body)
        assert other.values(b"host") == [mine.authority]
        assert not other.trailers


@named([*LENGTH_AND_CODING, *CODINGS, *CHUNKS, *HEADS, *HOSTS])
def test_a_request_is_refused_or_means_the_same_to_all(http1: Http1, case: Case) -> None:
    reading = http1.read(case.data)
    check_outcome(reading, case)
    for mine, passed in zip(reading.complete, http1.pass_on(case.data), strict=False):
        check_passed_on(mine, passed)


@named(ANSWERS)
def test_an_answer_is_refused_or_means_the_same_to_all(http1: Http1, case: Case) -> None:
    reading = http1.read(case.data, response=True)
    check_outcome(reading, case)
    passed = http1.pass_on(case.data, response=True)
    for mine, sent in zip(reading.complete, passed, strict=False):
        (theirs,) = read_response_with_h11(sent).complete
        assert (theirs.status, theirs.body) == (mine.status, mine.body)


# ---- headers that somebody else wants to be rid of ----


@pytest.mark.parametrize(
    ("source", "option", "field"),
    [
        ("Davison, CVE-2022-31813", b"X-Forwarded-For", b"X-Forwarded-For: 192.0.2.1"),
        ("Davison", b"Cookie", b"Cookie: a=b"),
        ("Davison", b"Authorization", b"Authorization: Basic eDp5"),
        ("Davison", b"close, X-Real-IP", b"X-Real-IP: 192.0.2.1"),
        ("CVE-2022-45059", b"Content-Length", FIVE.strip()),
        ("CVE-2022-45059", b"Host", b"Host: x"),
    ],
)
def test_connection_takes_nothing_from_a_request(
    http1: Http1, source: str, option: bytes, field: bytes
) -> None:
    extra = b"" if field.startswith((b"Host", b"Content-Length")) else field + b"\r\n"
    request = POST + FIVE + b"Connection: " + option + b"\r\n" + extra + b"\r\nhello"
    (passed,) = http1.pass_on(request)
    assert b"\r\n" + field + b"\r\n" in passed
    assert b"connection:" not in passed.lower()


def test_an_empty_connection_hides_no_other(http1: Http1) -> None:
    """CVE-2021-33197 (golang/go#46313)."""
    request = GET + b"Connection:\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\r\n"
    assert http1.pass_on(request) == [GET + b"\r\n"]


def test_an_interim_answer_carries_nothing_of_its_connection(http1: Http1) -> None:
    """golang/go#81319."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n"
    own = b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
    assert http1.pass_on(hints + own + b"\r\n", response=True) == [hints + b"\r\n"]


def test_no_connection_becomes_http_2_behind_our_back(http1: Http1) -> None:
    """h2c; golang/go#16875."""
    request = (
        GET + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
        b"Connection: Upgrade, HTTP2-Settings\r\n\r\n"
    )
    assert http1.pass_on(request) == [GET + b"\r\n"]


def test_a_body_is_nothing_that_is_said_in_a_tunnel(http1: Http1) -> None:
    """llhttp takes it for that: found by comparing with it."""
    request = POST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n" + FIVE + b"\r\nhello"
    assert http1.pass_on(request) == [POST + FIVE + b"\r\nhello"]
