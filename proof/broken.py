"""Each rule replaced by what one might do instead, and the property that then fails.

The worlds are no larger than it takes to see it.
"""

from __future__ import annotations

from typing import NamedTuple

from proof.protocol import Rules
from proof.world import World


class Broken(NamedTuple):
    """A protocol without one of its rules.

    Attributes:
        instead: what is done.
        fails: the property's letter.
    """

    instead: str
    fails: str
    world: World


def _broken(instead: str, fails: str, rules: Rules, world: World = World(clients=2)) -> Broken:  # noqa: B008
    return Broken(instead, fails, world._replace(rules=rules))


_POSTS = World(clients=2, posts=True)

BROKEN = (
    _broken(
        "a context has to be the last one given, as in the paper; one client has three mails in flight",
        "S",
        Rules(check="equality"),
        World(clients=1, identities="0", in_flight=3),
    ),
    _broken(
        "a context has to be the last one given, as in the paper; two devices share an identity",
        "S",
        Rules(check="equality"),
        World(clients=2, identities="00"),
    ),
    _broken("any context is taken whose version is not ahead", "D", Rules(check="versions")),
    _broken("any version of a boot in the table is taken", "D", Rules(check="boots without ranges")),
    _broken("boots forget the table, and refuse contexts of boots before", "S", Rules(check="own boot")),
    _broken("boots forget the table, and take contexts of boots before", "D", Rules(check="own boot or unknown")),
    _broken("boots that begin at one version share an id", "D", Rules(fresh_boots=False)),
    _broken("a record that the store refused is made again", "N", Rules(one_record_a_version=False)),
    _broken(
        "a record that the store refused is made again, and what comes of it",
        "D",
        Rules(one_record_a_version=False),
        World(clients=2, unwatched="N"),
    ),
    _broken("only the mail that proves it is refused", "L", Rules(halt_lasts=False)),
    _broken("contexts have no MAC", "S", Rules(contexts_are_keyed=False), World(clients=1, hostile_client=True)),
    _broken("an answer's context names the record before its own", "D", Rules(own_record=False)),
    _broken("posted mail carries no context", "D", Rules(posts=False), _POSTS),
    _broken("a client keeps one context, of the highest version", "D", Rules(held="highest version"), _POSTS),
    _broken("a client keeps one context, the last it received", "D", Rules(held="last received"), _POSTS),
    _broken("a client pins no log id", "D", Rules(pinned=False)),
    _broken("an honest host lets answers leave before their record is durable", "C", Rules(gate=False)),
)
