import pytest

from a2mim.data.remote.addresses import public_name


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://user:hunter2@host/x.tar", "https://host/x.tar"),
        ("https://user:hunter2@host:8080/x-{0..3}.tar?sig=hunter2", "https://host:8080/x-{0..3}.tar"),
        ("https://user:hun/ter2@host/x.tar", "https://…"),
        ("https://user:hunt@er2@host/x.tar", "https://host/x.tar"),
        ("HTTPS://host/x.tar?hunter2#hunter2", "HTTPS://host/x.tar"),
        ("s3://bucket/x.tar?versionId=hunter2", "s3://bucket/x.tar"),
        ("s3://bucket/x-?.tar", "s3://bucket/x-?.tar"),
        ("http://[::1]:80/x.tar", "http://[::1]:80/x.tar"),
        ("s3://bucket/a@b/x.tar", "s3://bucket/a@b/x.tar"),
        ("data/x-?.tar", "data/x-?.tar"),
        (
            "https://user:hunter2@host/x.tar?sig=hunter2: the server answered 403",
            "https://host/x.tar: the server answered 403",
        ),
        ("nothing matches 'https://host/x?hunter2', give", "nothing matches 'https://host/x', give"),
        (
            "pipe:curl -H 'Authorization: Bearer hunter2' https://u:hunter2@host/x.tar?k=hunter2 | cat",
            "pipe:curl -H 'Authorization: …' https://host/x.tar | cat",
        ),
        ("https://host/x.tar;sig=hunter2", "https://host/x.tar"),
        ("https://host/a;v=hunter2/x.tar?hunter2 is gone", "https://host/a is gone"),
        ("a;b=c/x.tar", "a;b=c/x.tar"),
        ("pipe:curl -u me:hunter2 http://h/x.tar", "pipe:curl -u … http://h/x.tar"),
        ("pipe:curl --user=me:hunter2 -s http://h/x.tar", "pipe:curl --user=… -s http://h/x.tar"),
        ("pipe:aws --secret-key hunter2 s3 cp s3://b/x.tar -", "pipe:aws --secret-key … s3 cp s3://b/x.tar -"),
    ],
)
def test_secrets_are_left_out_and_the_rest_stays(given, shown):
    assert public_name(given) == shown and "hunter2" not in shown
