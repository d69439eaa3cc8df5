"""Who may see the page: browsers with the token, and nobody else."""

from __future__ import annotations

import re

import httpx
import pytest
from page_world import TOKEN, client


def test_without_the_token_or_with_a_wrong_one_nothing_is_shown(link: str) -> None:
    for token in (None, "-", "wrong", TOKEN[:-1], f"{TOKEN}x"):
        with client(link, token) as stranger:
            answer = stranger.get("/view/api/runs")
            assert (answer.status_code, answer.json()["error"][:23]) == (401, "You are not signed in. ")
            assert stranger.post("/view/login", content=token or "").status_code == 401
            assert not stranger.cookies


def test_the_cookie_opens_the_page_and_scripts_cannot_read_it(link: str) -> None:
    with client(link, None) as browser:
        answer = browser.post("/view/login", content=TOKEN)
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"]
        assert re.search(r"^agl-[0-9a-f]{8}=[0-9a-f]{64}; HttpOnly; Path=/view; SameSite=strict$", cookie), cookie
        assert TOKEN not in cookie
        assert browser.get("/view/api/runs").status_code == 200


def test_the_token_is_in_the_part_of_the_link_that_no_server_sees(link: str) -> None:
    assert link.partition("#")[2] == f"token={TOKEN}"


@pytest.mark.parametrize("path", ["/", "/view/app.js", "/view/api/runs"])
def test_every_answer_forbids_foreign_and_inline_scripts_and_frames(link: str, path: str) -> None:
    with client(link) as browser:
        headers = browser.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_another_name_for_this_machine_and_another_site_are_refused(link: str) -> None:
    with client(link) as browser:
        assert browser.get("/view/api/runs", headers={"host": "evil.example"}).status_code == 403
        assert browser.get("/", headers={"host": "evil.example"}).status_code == 403
        for site in ("cross-site", "same-site"):
            assert browser.get("/view/api/runs", headers={"sec-fetch-site": site}).status_code == 401


def test_a_name_never_leads_out_of_the_folder(link: str) -> None:
    with client(link) as browser:
        for name in ("../../etc", "/etc", "..", "runs", ""):
            assert browser.get("/view/api/run", params={"source": name}).status_code == 404
            assert browser.get("/view/api/rollouts", params={"source": name}).status_code == 404
        assert browser.get("/view/app.py").status_code == 404


def test_a_long_login_is_refused_before_it_is_read(link: str) -> None:
    with client(link, None) as browser:
        assert browser.post("/view/login", content=b"x" * 100_000).status_code == 413


def test_the_page_changes_nothing(link: str) -> None:
    with client(link) as browser:
        answers: list[httpx.Response] = [browser.request(method, "/view/api/rollouts") for method in ("POST", "PUT", "DELETE")]
    assert {answer.status_code for answer in answers} == {405}
