# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures against Amazon's own examples, and what is read of an error."""

from __future__ import annotations

import datetime as dt
import ssl

import pytest
from ansible_collections.groundplane.onprem.plugins.module_utils.json_https import Answer, HttpsError
from ansible_collections.groundplane.onprem.plugins.module_utils.s3_client import (
    AnswerError,
    Credentials,
    Request,
    S3Client,
    StoreError,
    UnreachableError,
    canonical_path,
    canonical_query,
    content_md5,
    error_of,
    parsed,
    server_context,
    signed_headers,
)

# Amazon S3 API reference, "Authenticating Requests: Using the Authorization Header", examples.
WHO = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
WHEN = dt.datetime(2013, 5, 24, tzinfo=dt.UTC)
HOST = "examplebucket.s3.amazonaws.com"


@pytest.mark.parametrize(
    ("request_", "signature"),
    [
        (
            Request("GET", "/test.txt", headers={"range": "bytes=0-9"}),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            Request(
                "PUT",
                "/test$file.text",
                body=b"Welcome to Amazon S3.",
                headers={"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            ),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            Request("GET", "/", {"lifecycle": ""}),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            Request("GET", "/", {"prefix": "J", "max-keys": "2"}),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
def test_a_request_is_signed_as_amazon_signs_it(request_: Request, signature: str) -> None:
    headers = signed_headers(request_, HOST, WHO, "us-east-1", WHEN)
    assert headers["authorization"].endswith(f"Signature={signature}")
    assert headers["x-amz-date"] == "20130524T000000Z"
    assert WHO.secret_key not in str(headers)


def test_what_is_signed_is_what_is_sent() -> None:
    request = Request("PUT", "/a b/ü", {"z": "1 2", "a": "=&", "acl": ""})
    assert request.target == "/a%20b/%C3%BC?a=%3D%26&acl=&z=1%202"
    assert canonical_path("/a~b-c_d.e/f+g") == "/a~b-c_d.e/f%2Bg"
    assert canonical_query({}) == ""


def test_another_body_or_moment_has_another_signature() -> None:
    plain = signed_headers(Request("PUT", "/a", body=b"1"), HOST, WHO, "us-east-1", WHEN)
    later = WHEN + dt.timedelta(seconds=1)
    for headers in (
        signed_headers(Request("PUT", "/a", body=b"2"), HOST, WHO, "us-east-1", WHEN),
        signed_headers(Request("PUT", "/a", body=b"1"), HOST, WHO, "us-east-1", later),
        signed_headers(Request("PUT", "/a", body=b"1"), HOST, WHO, "eu-1", WHEN),
        signed_headers(Request("PUT", "/a", body=b"1", headers={"x-a": "1"}), HOST, WHO, "us-east-1", WHEN),
    ):
        assert headers["authorization"] != plain["authorization"]


def test_a_secret_is_in_no_text() -> None:
    assert "MDENG" not in f"{WHO} {WHO!r}"


def test_errors_are_read_in_both_forms() -> None:
    xml = b'<?xml version="1.0"?><Error xmlns="x"><Code>NoSuchBucket</Code><Message>None.</Message></Error>'
    assert error_of(Answer(404, xml)) == ("NoSuchBucket", "None.")
    assert error_of(Answer(400, b'{"Code":"XMinioAdminNoSuchUser","Message":"No."}')) == (
        "XMinioAdminNoSuchUser",
        "No.",
    )
    assert error_of(Answer(502, b"Bad gateway")) == ("", "Bad gateway")
    assert error_of(Answer(403, b"")) == ("", "")


def test_an_error_says_what_was_asked_and_what_was_said() -> None:
    error = AnswerError("https://h:9000: GET /b", 404, "NoSuchBucket", "None.")
    assert str(error) == "https://h:9000: GET /b: the store answers 404 NoSuchBucket: None."
    assert str(AnswerError("x", 500, "", "")) == "x: the store answers 500"


def test_namespaces_do_not_matter_and_what_is_no_xml_is_named() -> None:
    assert parsed(Answer(200, b'<a xmlns="urn:x"><b>1</b></a>'), "it").findtext("b") == "1"
    with pytest.raises(StoreError, match="bucket a: versions: the store answers what is no XML"):
        parsed(Answer(200, b"<html>"), "bucket a: versions")


def test_md5_is_as_http_wants_it() -> None:
    assert content_md5(b"") == {"content-md5": "1B2M2Y8AsgTpgAmY7PhCfg=="}


def test_an_authority_that_cannot_be_read_is_named(tmp_path: object) -> None:
    with pytest.raises(HttpsError, match=r"absent\.crt: No such file"):
        server_context(f"{tmp_path}/absent.crt")


def test_servers_are_given_as_https() -> None:
    for server in ("http://127.0.0.1:9000", "127.0.0.1:9000"):
        with pytest.raises(UnreachableError, match="is no https URL: write https://host:port"):
            S3Client([server], ssl.create_default_context(), WHO, region="us-east-1")
    with pytest.raises(UnreachableError, match="none is named"):
        S3Client([], ssl.create_default_context(), WHO, region="us-east-1")
