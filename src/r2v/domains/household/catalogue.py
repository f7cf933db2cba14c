"""What exists in a house: a selection of ALFWorld's tables (MIT, see NOTICE), enough for all six task families."""

from __future__ import annotations

import re
from typing import Literal, get_args

ENTITY = re.compile(r"(?<![a-z])[a-z]+ \d+")
"""A name such as `apple 1`. It begins where its letters do: tried from each letter, one long word would take for ever."""
Family = Literal[
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
]
FAMILIES: tuple[Family, ...] = get_args(Family)


def _types(names: str) -> frozenset[str]:
    return frozenset(names.split())


HEATABLE = _types("Apple Bread Cup Egg Mug Plate Potato Tomato")
COOLABLE = _types("Apple Bowl Bread Cup Egg Lettuce Mug Pan Plate Pot Potato Tomato WineBottle")
CLEANABLE = _types(
    "Apple Bowl ButterKnife Cloth Cup DishSponge Egg Fork Kettle Knife Ladle Lettuce Mug Pan Plate Pot Potato SoapBar "
    "Spatula Spoon Tomato"
)
SLICEABLE = _types("Apple Bread Egg Lettuce Potato Tomato")
LAMPS = ("DeskLamp", "FloorLamp")
OPENABLE = _types("Fridge Cabinet Microwave Drawer Safe")

_FOOD = "Apple Bread Egg Lettuce Potato Tomato "
_CUTLERY = "ButterKnife Fork Knife Ladle Spatula Spoon "
_DISHES = "Bowl Cup Mug Plate "
_POTS = "Kettle Pan Pot "
_SHAKERS = "PepperShaker SaltShaker "
_BOTTLES = "Glassbottle WineBottle "
_DESK_THINGS = "AlarmClock Book CD CellPhone CreditCard KeyChain Laptop Pen Pencil "
_LIVING_THINGS = "Box Candle Newspaper RemoteControl Statue TissueBox Vase Watch "
_BATH_THINGS = "Candle Cloth DishSponge SoapBar SoapBottle SprayBottle TissueBox ToiletPaper "

ACCEPTS: dict[str, frozenset[str]] = {
    "Fridge": _types(_FOOD + _DISHES + _BOTTLES + "Pan Pot"),
    "Microwave": _types("Apple Bread Cup Egg Mug Plate Potato Tomato Bowl Glassbottle"),
    "SinkBasin": _types(_FOOD + _CUTLERY + _DISHES + _POTS + "Cloth DishSponge SoapBar Glassbottle"),
    "CounterTop": _types(
        _FOOD + _CUTLERY + _DISHES + _POTS + _SHAKERS + _BOTTLES + _DESK_THINGS + _LIVING_THINGS + _BATH_THINGS
    ),
    "DiningTable": _types(
        _FOOD + _CUTLERY + _DISHES + _POTS + _SHAKERS + _BOTTLES + _DESK_THINGS + _LIVING_THINGS + "Cloth SoapBottle"
    ),
    "Cabinet": _types(
        _DISHES + _POTS + _SHAKERS + _BOTTLES + "Book CD Box Candle Cloth DishSponge Ladle Newspaper SoapBar SoapBottle "
        "SprayBottle TissueBox ToiletPaper Vase"
    ),
    "Drawer": _types(
        _CUTLERY + _SHAKERS + "Book CD Candle CellPhone Cloth CreditCard DishSponge KeyChain Newspaper Pen Pencil "
        "RemoteControl SoapBar SoapBottle SprayBottle TissueBox ToiletPaper Watch"
    ),
    "Shelf": _types(_DISHES + _SHAKERS + _BOTTLES + _LIVING_THINGS + _BATH_THINGS + _DESK_THINGS + "Kettle Pot"),
    "StoveBurner": _types(_POTS),
    "CoffeeMachine": _types("Mug"),
    "GarbageCan": _types(_FOOD + _BATH_THINGS + _BOTTLES + "CD Newspaper Pen Pencil"),
    "SideTable": _types(_DESK_THINGS + _LIVING_THINGS + _DISHES + _BATH_THINGS + _SHAKERS + "Bread Pillow"),
    "CoffeeTable": _types(_DESK_THINGS + _LIVING_THINGS + _DISHES),
    "Desk": _types(_DESK_THINGS + _LIVING_THINGS + _DISHES + "BaseballBat"),
    "Dresser": _types(_DESK_THINGS + _LIVING_THINGS + _DISHES + "SprayBottle ToiletPaper"),
    "Bed": _types("BaseballBat Book CellPhone Laptop Newspaper Pillow"),
    "Sofa": _types("Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow RemoteControl"),
    "ArmChair": _types("Book Box CellPhone Cloth CreditCard KeyChain Laptop Newspaper Pillow RemoteControl"),
    "Safe": _types("CD CellPhone CreditCard KeyChain Statue Vase Watch"),
    "Toilet": _types(_BATH_THINGS + "Newspaper"),
    "BathtubBasin": _types("Cloth DishSponge SoapBar"),
    "Cart": _types(_BATH_THINGS + "Mug Statue Vase"),
}
"""Receptacle type -> object types it can contain."""

SMALL_HOUSE = _types(
    "Apple Bread Egg Potato Tomato Mug Plate Cup Bowl Knife Spoon Pan Book CD CellPhone CreditCard KeyChain Pen Pillow "
    "Newspaper Vase Cloth SoapBar Candle"
)
"""The object types of a house with fewer kinds of things: enough for every family, learnable by a tiny model in minutes."""

ROOMS: dict[str, dict[str, int]] = {
    "kitchen": {
        "Fridge": 1, "Microwave": 1, "SinkBasin": 1, "CounterTop": 2, "Cabinet": 4, "Drawer": 4, "DiningTable": 1,
        "StoveBurner": 2, "CoffeeMachine": 1, "GarbageCan": 1, "Shelf": 2,
    },
    "living": {
        "Sofa": 1, "ArmChair": 2, "CoffeeTable": 1, "SideTable": 2, "Shelf": 3, "Drawer": 3, "Cabinet": 3, "Dresser": 1,
        "DiningTable": 1, "GarbageCan": 1, "Safe": 1,
    },
    "bedroom": {
        "Bed": 1, "Desk": 1, "Dresser": 1, "SideTable": 2, "Drawer": 4, "Shelf": 3, "GarbageCan": 1, "ArmChair": 1,
        "Safe": 1,
    },
    "bathroom": {
        "SinkBasin": 2, "Toilet": 1, "BathtubBasin": 1, "CounterTop": 1, "Cabinet": 4, "Drawer": 3, "Shelf": 2,
        "GarbageCan": 1, "Cart": 1,
    },
}  # fmt: skip
"""Room -> receptacle types with the most of each that a small room has (larger rooms repeat cabinets, drawers, shelves)."""

LAMP_STANDS = ("Desk", "SideTable", "Dresser", "CoffeeTable", "Shelf")

TEMPLATES: dict[str, tuple[str, str]] = {
    "pick_and_place_simple": ("put a {o} in {r}.", "put some {o} on {r}."),
    "look_at_obj_in_light": ("look at {o} under the {r}.", "examine the {o} with the {r}."),
    "pick_clean_then_place_in_recep": ("put a clean {o} in {r}.", "clean some {o} and put it in {r}."),
    "pick_heat_then_place_in_recep": ("put a hot {o} in {r}.", "heat some {o} and put it in {r}."),
    "pick_cool_then_place_in_recep": ("put a cool {o} in {r}.", "cool some {o} and put it in {r}."),
    "pick_two_obj_and_place": ("put two {o} in {r}.", "find two {o} and put them in {r}."),
}
