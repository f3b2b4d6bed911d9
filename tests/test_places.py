from pathlib import Path

import pytest

from diracnets.places import url_in


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://example.com//a.png", "https://example.com//a.png"),
        (Path("https://example.com/a.png"), "https://example.com/a.png"),
        ("s3://bucket/a", "s3://bucket/a"),
        (Path("file:///home/a.png"), "file:///home/a.png"),
        ("C:/images", None),
        ("images/a:/b", None),
        ("photo.png", None),
    ],
)
def test_a_url_is_known_by_its_scheme(given, url):
    assert url_in(given) == url
