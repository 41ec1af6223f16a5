"""Troubles: each told once for as long as it lasts."""

from pareflow.troubles import Troubles


def test_a_trouble_is_new_until_it_was_told_and_again_once_it_was_over() -> None:
    """Other words about the same thing are new, too; what is said of another thing is by itself."""
    troubles = Troubles()
    asked = [("disk", "full"), ("disk", "full"), ("server", "full"), ("disk", "gone"), ("disk", "full")]
    assert [troubles.is_new(*one) for one in asked] == [True, False, True, True, True]
    troubles.over("disk")
    troubles.over("nothing that was told")
    assert [troubles.is_new(*one) for one in (("disk", "full"), ("server", "full"))] == [True, False]
