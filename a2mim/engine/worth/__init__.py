"""`a2mim worth-it`: one command that measures whether pre-training helps on a user's images."""
