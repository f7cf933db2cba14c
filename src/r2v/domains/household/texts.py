"""What the household answers: the sentences of ALFWorld's grammar, in both dialects."""

from __future__ import annotations

from collections.abc import Sequence

from r2v.domains.household.rules import CLEAN, COOL, HOT, SLICED, TOGGLED, Effect, State, World

BANNER = "-= Welcome to TextWorld, ALFRED! =-"

HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""


def introduction(world: World, state: State) -> str:
    """The first screen, with banner and task."""
    return f"{BANNER}\n\n{room(world, state)}\n\nYour task is to: {world.sentence}"


def room(world: World, state: State) -> str:
    """The first screen's middle part: the receptacles of the room, or what is near if the agent starts at one."""
    if state.location in world.at_location:
        return look(world, state)
    return f"You are in the middle of a room. Looking quickly around you, you see {things(world, world.receptacles)}."


def feedback(world: World, state: State, effect: Effect) -> str:
    """Answer to an effect, `state` being the state after it."""
    verb, a, b = effect
    names = world.names
    if verb == "go":
        place = names[a] if world.dialect == "move" else names[state.location]
        return f"You arrive at {place}. {examine(world, state, a)}"
    if verb == "open":
        return f"You open the {names[a]}. {examine(world, state, a)}"
    if verb == "close":
        return f"You close the {names[a]}."
    if verb == "take":
        return f"You pick up the {names[a]} from the {names[b]}."
    if verb == "put":
        put, to = ("move", "to") if world.dialect == "move" else ("put", "in/on")
        return f"You {put} the {names[a]} {to} the {names[b]}."
    if verb in ("heat", "clean", "cool"):
        return f"You {verb} the {names[a]} using the {names[b]}."
    if verb == "use":
        return f"You turn on the {names[a]}."
    if verb == "slice":
        return f"You sliced the {names[a]} with the {names[b]}."
    if verb == "examine":
        return examine(world, state, a)
    if verb == "examine object":
        return examine_object(world, state, a)
    if verb == "inventory":
        if state.holding < 0:
            return "You are not carrying anything."
        return f"You are carrying: {things(world, [state.holding])}."
    return HELP if verb == "help" else look(world, state)


def examine(world: World, state: State, r: int) -> str:
    name = world.names[r]
    if r not in world.traits["openable"]:
        return f"On the {name}, you see {things(world, state.contents[r])}."
    if r in state.opened:
        return f"The {name} is open. In it, you see {things(world, state.contents[r])}."
    return f"The {name} is closed."


def examine_object(world: World, state: State, o: int) -> str:
    name = world.names[o]
    if o in world.traits["isreceptacleobject"]:
        return f"This is a normal {name}. In it, you see {things(world, world.inner.get(o, ()))}."
    hot, cool, clean, sliced = (o in state.status[status] for status in (HOT, COOL, CLEAN, SLICED))
    if (clean and hot) or (clean and cool):
        return f"This is a {'hot' if hot else 'cool'} and clean {'sliced ' if sliced else ''}{name}."
    if sliced and (clean or hot or cool):
        return f"This is a {'clean' if clean else 'hot' if hot else 'cool'} sliced {name}."
    if hot or clean or cool:
        return f"This is a {'hot' if hot else 'clean' if clean else 'cold'} {name}."
    if o in world.traits["toggleable"] and o in state.status[TOGGLED]:
        return f"This {name} is on."
    if sliced:
        return f"This is a sliced {name}."
    return f"There's nothing special about {name}."


def look(world: World, state: State) -> str:
    here = world.at_location.get(state.location, ())
    if not here:
        return "You are in the middle of a room. Looking quickly around you, you see nothing."
    # The grammar lists what lies at the location and was explicitly taken out of a receptacle that stands there.
    near = [
        o for o, place in sorted(state.objects_at) if place == state.location for r in here if (o, r) in state.taken_from
    ]
    facing = listing([world.names[r] for r in here])
    return f"You are facing the {facing}. Next to it, you see {things(world, near)}."


def things(world: World, entities: Sequence[int]) -> str:
    return listing([f"a {world.names[entity]}" for entity in entities])


def listing(items: Sequence[str]) -> str:
    """`nothing` | `x` | `x, and y` | `x, y, and z`."""
    if not items:
        return "nothing"
    if len(items) == 1:
        return items[0]
    return f"{', '.join(items[:-1])}, and {items[-1]}"
