"""The machine parts of the small world, as triangle meshes.

    python sample/build/parts.py --cache CACHE_DIR

Two disjoint lists of classes: `BASE` (what the model and the backbone are pretrained on) and
`NOVEL` (what `sample/mvip` shows, and what pretraining never sees). Every class has several
geometries (sizes, standards, proportions); a geometry is named by a string such as
`HexNut/iso4032/M8-1.25`; `classes.json` records those names, and the tests compare them.

Most parts are standard parts of bd_warehouse; a few are modelled here with build123d. Each is
tessellated once, scaled into the unit sphere, and stored as CACHE_DIR/meshes/CLASS/INDEX.npz.
"""

import argparse
import itertools
import json
import math
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

# How a part may lie on the table: rotations in degrees about x, y, applied before the free turn
# about the vertical. Flat things mostly lie flat; long things lie on their side or stand.
FLAT = [(0, 0), (0, 0), (0, 0), (180, 0), (68, 0)]
LONG = [(90, 0), (90, 0), (90, 0), (65, 0), (180, 0)]
BLOCK = [(0, 0), (0, 0), (90, 0), (0, 90), (180, 0)]


def _cad():
    """build123d's names, imported late: it takes seconds and only mesh building needs it."""
    import build123d

    return build123d


def _bore(part, radius, height):
    """`part` with a hole of `radius` along z."""
    return part - _cad().Cylinder(radius, height * 3)


def _fastener(kind, standard, size, length=None):
    from bd_warehouse import fastener

    args = {"size": size, "fastener_type": standard}
    if length is not None:
        args["length"] = length
    return getattr(fastener, kind)(**args)


def _bearing(kind, size):
    from bd_warehouse import bearing

    return getattr(bearing, kind)(size)


def _spur_gear(teeth, module, thickness, bore, hub):
    from bd_warehouse.gear import SpurGear

    b = _cad()
    part = SpurGear(module, teeth, 20, thickness)
    if hub:
        part += b.Pos(0, 0, thickness * 0.75) * b.Cylinder(bore * 1.7, thickness * 1.2)
    return _bore(part, bore, thickness * 4)


def _helical_gear(teeth, module, angle, thickness, bore):
    from bd_warehouse.gear import HelicalGear

    return _bore(HelicalGear(module, teeth, 20, angle, thickness), bore, thickness * 3)


def _worm(module, starts, quotient, length, shaft):
    from bd_warehouse.gear import Worm

    part = Worm(module, starts, quotient, length)
    return part + _cad().Cylinder(module * quotient * 0.32, length * shaft)


def _gear_rack(teeth, module, thickness, base):
    from bd_warehouse.gear import RackGear

    return RackGear(module, teeth, 20, thickness, base_height=base)


def _sprocket(teeth, bore, bolts, thickness):
    from bd_warehouse.sprocket import Sprocket

    radius = teeth * 12.7 / (2 * math.pi)
    return Sprocket(
        teeth,
        thickness=thickness,
        bore_diameter=bore,
        num_mount_bolts=bolts,
        mount_bolt_diameter=radius * 0.22 if bolts else 0,
        bolt_circle_diameter=radius * 1.25 if bolts else 0,
    )


def _flange(kind, nps, rating):
    from bd_warehouse import flange

    return getattr(flange, kind)(nps=nps, flange_class=rating)


def _profile_rail(size, length):
    from bd_warehouse.open_builds import VSlotLinearRail

    return VSlotLinearRail(size, length)


def _snap_ring(size):
    from bd_warehouse.retaining_ring import ExternalSnapRing

    return ExternalSnapRing(size)


def _pipe_elbow(radius, wall, bend, straight, collar):
    """A quarter bend of pipe with straight ends and, if collar > 1, thickened mouths."""
    b = _cad()
    line = b.Line((0, 0, 0), (0, 0, straight))
    slack = bend * math.sqrt(0.5)
    arc = b.ThreePointArc(
        (0, 0, straight), (bend - slack, 0, straight + slack), (bend, 0, straight + bend)
    )
    end = b.Line((bend, 0, straight + bend), (bend + straight, 0, straight + bend))
    path = b.Wire([line, arc, end])
    outer = b.sweep(b.Circle(radius), path=path)
    inner = b.sweep(b.Circle(radius - wall), path=path)
    if collar > 1:
        depth = straight * 0.5
        outer += b.Pos(0, 0, depth / 2) * b.Cylinder(radius * collar, depth)
        mouth = b.Pos(bend + straight - depth / 2, 0, straight + bend) * b.Rot(0, 90, 0)
        outer += mouth * b.Cylinder(radius * collar, depth)
    return outer - inner


def _angle_bracket(width, leg, thickness, holes, hole):
    """Two plates at a right angle, `holes` holes of radius `hole` in each."""
    b = _cad()
    part = b.Pos(leg / 2, 0, thickness / 2) * b.Box(leg, width, thickness)
    part += b.Pos(thickness / 2, 0, leg / 2) * b.Box(thickness, width, leg)
    for i in range(holes):
        where = thickness + (leg - thickness) * (i + 0.6) / (holes + 0.2)
        part -= b.Pos(where, 0, 0) * b.Cylinder(hole, thickness * 4)
        part -= b.Pos(0, 0, where) * b.Rot(0, 90, 0) * b.Cylinder(hole, thickness * 4)
    return part


def _v_pulley(radius, width, grooves, bore, hub):
    """A belt pulley: V grooves turned into a disc, with a hub."""
    b = _cad()
    points = [(bore, 0), (radius, 0)]
    pitch = width / grooves
    for i in range(grooves):
        z = i * pitch
        points += [(radius, z + pitch * 0.12), (radius * 0.78, z + pitch * 0.38)]
        points += [(radius * 0.78, z + pitch * 0.62), (radius, z + pitch * 0.88)]
    points += [(radius, width), (hub, width), (hub, width * 1.35), (bore, width * 1.35)]
    face = b.make_face(b.Plane.XZ * b.Polyline(points, close=True))
    return b.revolve(face, axis=b.Axis.Z)


def _coil_spring(radius, wire, turns, pitch):
    b = _cad()
    path = b.Helix(pitch=pitch, height=pitch * turns, radius=radius)
    profile = b.Plane(origin=path @ 0, z_dir=path % 0) * b.Circle(wire)
    return b.sweep(profile, path=path)


def _handwheel(radius, rim, spokes, hub):
    """Rim, spokes and bored hub; left as overlapping solids, which rays do not mind."""
    b = _cad()
    solids = [b.Torus(radius, rim), _bore(b.Cylinder(hub, rim * 3), hub * 0.5, rim * 3)]
    start = hub * 0.8
    for i in range(spokes):
        turn = b.Rot(0, 0, 360 * i / spokes) * b.Pos((radius + start) / 2, 0, 0)
        solids.append(turn * b.Rot(0, 90, 0) * b.Cylinder(rim * 0.62, radius - start))
    return b.Compound(solids)


def _shaft_collar(outer, inner, width, slit):
    """A clamping ring with a slit and a cross hole for its screw."""
    b = _cad()
    part = _bore(b.Cylinder(outer, width), inner, width)
    part -= b.Pos(outer, 0, 0) * b.Box(outer * 2, slit, width * 2)
    middle = (outer + inner) / 2
    screw = b.Rot(90, 0, 0) * b.Cylinder((outer - inner) * 0.27, outer * 3)
    return part - b.Pos(middle, 0, 0) * screw


def _stepped_shaft(*steps):
    """Cylinders on one axis; `steps` are (radius, length)."""
    b = _cad()
    part, z = None, 0.0
    for radius, length in steps:
        piece = b.Pos(0, 0, z + length / 2) * b.Cylinder(radius, length)
        part = piece if part is None else part + piece
        z += length
    return part


def _eye_bolt(ring, wire, shank, collar):
    b = _cad()
    part = b.Pos(0, 0, ring + wire) * b.Rot(90, 0, 0) * b.Torus(ring, wire)
    part += b.Pos(0, 0, -shank / 2 + wire * 0.5) * b.Cylinder(wire * 0.9, shank)
    return part + b.Pos(0, 0, -wire * 0.1) * b.Cylinder(wire * collar, wire * 0.8)


def _hinge(width, leaf, thickness, knuckles):
    """An open butt hinge: two leaves with holes, a barrel of knuckles between them."""
    b = _cad()
    barrel = thickness * 1.8
    part = b.Pos(0, 0, barrel * 0.3) * b.Rot(90, 0, 0) * b.Cylinder(barrel, width)
    for i in range(1, knuckles):
        y = -width / 2 + width * i / knuckles
        ring = _bore(b.Cylinder(barrel * 1.2, width * 0.02), barrel * 0.75, width)
        part -= b.Pos(0, y, barrel * 0.3) * b.Rot(90, 0, 0) * ring
    for side in (-1, 1):
        plate = b.Pos(side * leaf / 2, 0, 0) * b.Box(leaf, width, thickness)
        for y in (-0.32, 0, 0.32):
            x = side * leaf * (0.72 if y else 0.5)
            plate -= b.Pos(x, y * width, 0) * b.Cylinder(leaf * 0.1, thickness * 3)
        part += plate
    return part


def _castle_nut(flats, height, bore, slots, crown):
    """A hexagon with a slotted crown (after DIN 935; slots for the split pin)."""
    b = _cad()
    body = b.extrude(b.RegularPolygon(flats / 2, 6, major_radius=False), height)
    body += b.Pos(0, 0, height + crown / 2) * b.Cylinder(flats * 0.46, crown)
    for i in range(slots):
        cut = b.Pos(flats / 2, 0, height + crown) * b.Box(flats, flats * 0.17, crown * 1.7)
        body -= b.Rot(0, 0, 360 * (i + 0.5) / slots) * cut
    return _bore(body, bore, height * 4)


def _wing_nut(hub, height, span, tip, rise):
    """A conical hub with two rounded wings (after DIN 315)."""
    b = _cad()
    part = b.Pos(0, 0, height / 2) * b.Cone(hub, hub * 0.75, height)
    for side in (-1, 1):
        start, end = (side * hub * 0.55, height * 0.45), (side * span, height * rise)
        blade = b.Polyline(
            [
                (start[0], start[1] - height * 0.35),
                (end[0] + side * tip * 0.3, end[1] - tip * 0.7),
                (end[0] - side * tip * 0.5, end[1] + tip * 0.7),
                (start[0], start[1] + height * 0.4),
            ],
            close=True,
        )
        wing = b.extrude(b.make_face(b.Plane.XZ * blade), hub * 0.2, both=True)
        disc = b.Rot(90, 0, 0) * b.Cylinder(tip, hub * 0.4)
        part += wing + b.Pos(end[0], 0, end[1]) * disc
    return _bore(part, hub * 0.5, height * 3)


def _bevel(vertices, slope):
    """Shrink a gear linearly towards its top: a straight bevel gear from a spur gear."""
    z = vertices[:, 2]
    t = (z - z.min()) / (z.max() - z.min())
    out = vertices.copy()
    out[:, :2] *= (1 - slope * t)[:, None]
    return out


def _many(function, rows):
    """[(geometry name, maker)] for a function and its argument lists."""
    name = re.sub("^_", "", function.__name__)
    result = []
    for row in rows:
        label = "/".join(str(x).replace(" ", "") for x in row)
        result.append((f"{name}/{label}", lambda row=row: function(*row)))
    return result


def _standard(kind, standard, sizes, length=None):
    """Fasteners of one standard; `length` is a multiple of the nominal diameter."""
    result = []
    for i, size in enumerate(sizes):
        factor = None if length is None else length[i % len(length)]
        diameter = float(re.match(r"M([\d.]+)", size).group(1))
        mm = None if factor is None else round(diameter * factor)
        name = f"{kind}/{standard}/{size}" + ("" if mm is None else f"x{mm}")
        result.append((name, lambda s=size, m=mm: _fastener(kind, standard, s, m)))
    return result


def _bearings(kind, sizes):
    return [(f"{kind}/{s}", lambda s=s: _bearing(kind, s)) for s in sizes]


# class -> (name in captions, poses, [(geometry name, maker)])
BASE = {
    "hex_nut": (
        "hex nut",
        FLAT,
        [
            *_standard("HexNut", "iso4032", ["M4-0.7", "M8-1.25", "M16-2", "M30-3.5"]),
            *_standard("HexNut", "iso4033", ["M6-1", "M12-1.75", "M24-3"]),
            *_standard("HexNut", "iso4035", ["M10-1.5", "M20-2.5"]),
        ],
    ),
    "flange_nut": (
        "flange nut",
        FLAT,
        _standard(
            "HexNutWithFlange",
            "din1665",
            ["M5-0.8", "M6-1", "M8-1.25", "M10-1.5", "M12-1.75", "M14-2", "M16-2", "M20-2.5"],
        ),
    ),
    "washer": (
        "washer",
        FLAT,
        [
            *_standard("PlainWasher", "iso7089", ["M5", "M10", "M24"]),
            *_standard("PlainWasher", "iso7093", ["M6", "M12", "M20"]),
            *_standard("PlainWasher", "iso7094", ["M8", "M16"]),
        ],
    ),
    "ball_bearing": (
        "ball bearing",
        FLAT,
        _bearings(
            "SingleRowDeepGrooveBallBearing",
            ["M4-13-5", "M5-19-6", "M6-15-5", "M8-22-7", "M8-16-4", "M9-26-8", "M10-35-11"],
        ),
    ),
    "spur_gear": (
        "spur gear",
        FLAT,
        _many(
            _spur_gear,
            [
                (12, 2, 8, 4, False),
                (14, 2, 6, 5, True),
                (16, 2, 10, 5, False),
                (18, 2, 6, 7, False),
                (20, 2, 8, 6, True),
                (24, 2, 7, 10, False),
                (28, 2, 8, 6, True),
                (32, 2, 6, 9, False),
            ],
        ),
    ),
    "sprocket": (
        "sprocket",
        FLAT,
        _many(
            _sprocket,
            [
                (10, 12, 0, 4),
                (12, 10, 0, 3),
                (14, 20, 0, 4),
                (16, 14, 4, 3),
                (18, 30, 4, 4),
                (20, 18, 5, 5),
                (24, 30, 5, 4),
                (28, 40, 6, 5),
            ],
        ),
    ),
    "hex_bolt": (
        "hex bolt",
        LONG,
        _standard(
            "HexHeadScrew",
            "iso4017",
            ["M4-0.7", "M5-0.8", "M6-1", "M8-1.25", "M10-1.5", "M12-1.75", "M16-2", "M20-2.5"],
            [2.5, 3, 4, 5, 2],
        ),
    ),
    "socket_screw": (
        "socket screw",
        LONG,
        _standard(
            "SocketHeadCapScrew",
            "iso4762",
            ["M3-0.5", "M4-0.7", "M5-0.8", "M6-1", "M8-1.25", "M10-1.5", "M12-1.75", "M16-2"],
            [2, 3, 4, 2.5, 5],
        ),
    ),
    "countersunk_screw": (
        "countersunk screw",
        LONG,
        [
            *_standard(
                "CounterSunkScrew", "iso2009", ["M5-0.8", "M6-1", "M8-1.25", "M10-1.5"], [3, 4, 2.5]
            ),
            *_standard(
                "CounterSunkScrew",
                "iso10642",
                ["M6-1", "M8-1.25", "M10-1.5", "M12-1.75"],
                [2.5, 3.5, 4.5],
            ),
        ],
    ),
    "blind_flange": (
        "blind flange",
        FLAT,
        [
            (f"BlindFlange/{n}/{c}", lambda n=n, c=c: _flange("BlindFlange", n, c))
            for n, c in [("1", 150), ("2", 300), ("3", 150), ("4", 300), ("6", 150), ("8", 300)]
        ],
    ),
    "pipe_elbow": (
        "pipe elbow",
        BLOCK,
        _many(
            _pipe_elbow,
            [
                (5, 0.8, 9, 6, 1.25),
                (5, 1, 7, 8, 1.3),
                (6, 1, 9, 5, 1),
                (4, 0.6, 10, 8, 1.35),
                (5, 1.2, 12, 3, 1),
                (6, 1, 8, 8, 1.2),
                (4, 0.7, 7, 10, 1.5),
            ],
        ),
    ),
    "profile_rail": (
        "aluminium profile",
        LONG,
        [
            (f"VSlotLinearRail/{s}/{n}", lambda s=s, n=n: _profile_rail(s, n))
            for s, n in [
                ("20x20", 30),
                ("20x20", 55),
                ("20x40", 40),
                ("20x40", 70),
                ("40x40", 50),
                ("20x60", 50),
            ]
        ],
    ),
    "angle_bracket": (
        "angle bracket",
        BLOCK,
        _many(
            _angle_bracket,
            [
                (20, 20, 3, 1, 4),
                (15, 30, 3, 2, 3),
                (30, 22, 2.5, 1, 5),
                (18, 34, 4, 2, 3.5),
                (12, 24, 2, 1, 3),
                (26, 36, 3, 2, 5),
                (16, 40, 3, 3, 3),
            ],
        ),
    ),
    "snap_ring": (
        "snap ring",
        FLAT,
        [
            (f"ExternalSnapRing/{s}", lambda s=s: _snap_ring(s))
            for s in ["6", "10", "16", "25", "40", "60", "90"]
        ],
    ),
    "gear_rack": (
        "gear rack",
        BLOCK,
        _many(
            _gear_rack,
            [
                (6, 2, 8, 8),
                (8, 2, 8, 8),
                (10, 2, 10, 10),
                (7, 2, 14, 6),
                (9, 2, 6, 12),
                (12, 2, 12, 10),
            ],
        ),
    ),
    "v_pulley": (
        "belt pulley",
        FLAT,
        _many(
            _v_pulley,
            [
                (20, 10, 1, 4, 8),
                (20, 18, 2, 5, 9),
                (24, 9, 1, 8, 13),
                (18, 22, 3, 4, 8),
                (26, 14, 1, 5, 10),
                (22, 20, 2, 8, 13),
                (16, 16, 1, 4, 7),
            ],
        ),
    ),
    "coil_spring": (
        "coil spring",
        LONG,
        _many(
            _coil_spring,
            [
                (8, 1.2, 6, 5),
                (8, 1.6, 5, 6),
                (6, 1, 8, 4),
                (10, 1.4, 5, 5),
                (7, 1.5, 7, 4.5),
                (9, 2, 4, 8),
            ],
        ),
    ),
    "handwheel": (
        "handwheel",
        FLAT,
        _many(
            _handwheel,
            [
                (20, 2.4, 3, 5),
                (20, 2, 4, 6),
                (20, 3, 5, 6),
                (20, 2.6, 3, 8),
                (20, 1.8, 5, 4),
                (20, 2.8, 4, 5),
            ],
        ),
    ),
    "shaft_collar": (
        "shaft collar",
        FLAT,
        _many(
            _shaft_collar,
            [
                (14, 8, 8, 2),
                (16, 8, 9, 3),
                (14, 6, 10, 2.5),
                (18, 11, 8, 3),
                (15, 9, 14, 2),
                (20, 14, 9, 3),
            ],
        ),
    ),
    "stepped_shaft": (
        "stepped shaft",
        LONG,
        _many(
            _stepped_shaft,
            [
                ((4, 12), (7, 14), (5, 10)),
                ((5, 20), (8, 6), (5, 12)),
                ((3, 10), (5, 10), (7, 12)),
                ((6, 10), (4, 6), (6, 14), (3, 8)),
                ((4, 8), (9, 4), (6, 20)),
                ((7, 16), (5, 4), (7, 16)),
            ],
        ),
    ),
    "eye_bolt": (
        "eye bolt",
        LONG,
        _many(
            _eye_bolt,
            [
                (8, 2.5, 18, 1.8),
                (10, 3, 16, 2),
                (7, 2.2, 24, 1.5),
                (9, 3, 22, 2.2),
                (11, 2.6, 20, 1.8),
                (8, 3, 14, 2),
            ],
        ),
    ),
    "hinge": (
        "hinge",
        FLAT,
        _many(
            _hinge,
            [
                (40, 18, 2, 3),
                (30, 20, 2, 3),
                (50, 16, 2, 5),
                (40, 24, 2.5, 5),
                (34, 14, 2, 3),
                (44, 20, 3, 3),
            ],
        ),
    ),
}

# class -> (super name, description, poses, [(geometry name, maker)]); two geometries are for
# training, the next two for validation, the rest for the test.
NOVEL = {
    "square_nut": (
        "nut",
        "square nut after DIN 557",
        FLAT,
        _standard(
            "SquareNut", "din557", ["M6-1", "M12-1.75", "M5-0.8", "M16-2", "M8-1.25", "M10-1.5"]
        ),
    ),
    "cap_nut": (
        "nut",
        "domed cap nut after DIN 1587",
        FLAT,
        _standard(
            "DomedCapNut",
            "din1587",
            ["M5-0.8", "M12-1.75", "M8-1.25", "M16-2", "M4-0.7", "M10-1.5", "M20-2.5"],
        ),
    ),
    "castle_nut": (
        "nut",
        "slotted castle nut",
        FLAT,
        _many(
            _castle_nut,
            [
                (18, 8, 5, 6, 5),
                (18, 6, 6, 6, 4),
                (18, 10, 5, 6, 4),
                (18, 7, 5.5, 6, 6),
                (18, 9, 6, 6, 5),
                (18, 6, 5, 6, 6),
                (18, 11, 5.5, 6, 5),
            ],
        ),
    ),
    "wing_nut": (
        "nut",
        "wing nut with two rounded wings",
        FLAT,
        _many(
            _wing_nut,
            [
                (6, 8, 13, 4, 1.2),
                (6, 7, 15, 4, 1.0),
                (6, 9, 12, 4.5, 1.1),
                (6, 8, 15, 3.5, 1.3),
                (7, 8, 14, 4, 1.2),
                (5.5, 8, 13, 5, 1.2),
                (6, 10, 14, 4, 1.0),
            ],
        ),
    ),
    "helical_gear": (
        "gear",
        "helical gear, teeth at an angle to the bore",
        FLAT,
        _many(
            _helical_gear,
            [
                (14, 2, 25, 10, 5),
                (20, 2, 20, 12, 7),
                (16, 2, 30, 12, 6),
                (22, 2, 25, 9, 6),
                (13, 2, 30, 14, 5),
                (18, 2, 25, 10, 8),
                (24, 2, 20, 12, 9),
            ],
        ),
    ),
    "bevel_gear": (
        "gear",
        "straight bevel gear",
        FLAT,
        [
            (f"bevel/{s}/{'/'.join(map(str, row))}", lambda s=s, row=row: (_spur_gear(*row), s))
            for s, row in [
                (0.42, (14, 2, 9, 5, False)),
                (0.35, (20, 2, 11, 6, False)),
                (0.45, (18, 2, 11, 6, False)),
                (0.33, (13, 2, 8, 4, False)),
                (0.40, (16, 2, 9, 5, False)),
                (0.48, (22, 2, 13, 8, False)),
                (0.38, (15, 2, 11, 4, False)),
            ]
        ],
    ),
    "worm_shaft": (
        "gear",
        "worm on a shaft, for a worm drive",
        LONG,
        _many(
            _worm,
            [
                (2, 1, 8, 24, 1.7),
                (2, 2, 9, 26, 1.5),
                (2, 1, 10, 22, 1.8),
                (2, 2, 8, 24, 1.6),
                (2, 1, 9, 28, 1.5),
                (2, 1, 8, 20, 2.0),
                (2, 2, 10, 26, 1.7),
            ],
        ),
    ),
    "roller_bearing": (
        "bearing",
        "single-row tapered roller bearing",
        FLAT,
        _bearings(
            "SingleRowTaperedRollerBearing",
            [
                "M17-40-13.25",
                "M25-52-16.25",
                "M20-47-15.25",
                "M30-62-21.25",
                "M15-42-14.25",
                "M22-44-15",
                "M28-58-20.25",
                "M25-62-18.25",
            ],
        ),
    ),
    "shoulder_screw": (
        "screw",
        "shoulder screw after ISO 7379",
        LONG,
        [
            (
                f"ShoulderScrew/iso7379/{s}x{n}",
                lambda s=s, n=n: _fastener("ShoulderScrew", "iso7379", s, n),
            )
            for s, n in [
                ("M6-1", 16),
                ("M10-1.5", 40),
                ("M8-1.25", 30),
                ("M12-1.75", 30),
                ("M5-0.8", 20),
                ("M16-2", 40),
                ("M20-2.5", 60),
                ("M8-1.25", 20),
            ]
        ],
    ),
    "collar_screw": (
        "screw",
        "button-head screw with collar after ISO 7380-2",
        LONG,
        _standard(
            "ButtonHeadWithCollarScrew",
            "iso7380_2",
            ["M5-0.8", "M8-1.25", "M6-1", "M10-1.5", "M3-0.5", "M4-0.7", "M12-1.75", "M16-2"],
            [2, 3, 2.5],
        ),
    ),
    "neck_flange": (
        "flange",
        "weld-neck pipe flange",
        FLAT,
        [
            (f"WeldNeckFlange/{n}/{c}", lambda n=n, c=c: _flange("WeldNeckFlange", n, c))
            for n, c in [
                ("2", 150),
                ("3", 300),
                ("1", 300),
                ("4", 150),
                ("1 1/2", 150),
                ("2 1/2", 150),
                ("6", 300),
            ]
        ],
    ),
    "lock_washer": (
        "washer",
        "internal-tooth lock washer after DIN 6797",
        FLAT,
        _standard(
            "InternalToothLockWasher",
            "din6797",
            ["M5", "M12", "M8", "M20", "M4", "M6", "M10", "M16"],
        ),
    ),
}
SPLIT_GEOMETRIES = {"train": slice(0, 2), "val": slice(2, 4), "test": slice(4, None)}


def makers(name):
    """The list of (geometry name, maker) of a base or novel class."""
    return BASE[name][2] if name in BASE else NOVEL[name][3]


def poses(name):
    return BASE[name][1] if name in BASE else NOVEL[name][2]


def record():
    """The class lists as they are stored in JSON: {"base": {class: [...]}, "novel": {...}}."""
    base = {k: {"caption": v[0], "geometries": [g for g, _ in v[2]]} for k, v in BASE.items()}
    novel = {}
    for k, v in NOVEL.items():
        names = [g for g, _ in v[3]]
        splits = {s: names[cut] for s, cut in SPLIT_GEOMETRIES.items()}
        novel[k] = {"super_class": v[0], "description": v[1], "geometries": splits}
    return {"base": base, "novel": novel}


def corner_normals(vertices, faces, crease=32.0):
    """Normals of all face corners [F, 3, 3], averaged over neighbours within `crease` degrees.

    CAD tessellation is faceted; averaging across shallow edges only keeps cylinders smooth and the
    edges of a hexagon sharp.
    """
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    cross = np.cross(b - a, c - a)  # its length is twice the area: the weight in the average
    length = np.linalg.norm(cross, axis=1, keepdims=True)
    unit = cross / np.maximum(length, 1e-12)
    order = np.argsort(faces.ravel(), kind="stable")
    bounds = np.searchsorted(faces.ravel()[order], np.arange(len(vertices) + 1))
    out = np.empty((len(faces), 3, 3))
    limit = math.cos(math.radians(crease))
    degree = np.diff(bounds)
    for count in np.unique(degree[degree > 0]):  # all vertices with so many corners at once
        corners = order[bounds[:-1][degree == count][:, None] + np.arange(count)]
        around = corners // 3
        near = unit[around] @ unit[around].transpose(0, 2, 1) > limit
        out[around, corners % 3] = near @ cross[around]
    return out / np.maximum(np.linalg.norm(out, axis=2, keepdims=True), 1e-12)


def build_mesh(task):
    """Tessellate one geometry into the cache; returns (class, geometry name, triangles, error)."""
    name, index, folder = task
    import trimesh

    geometry, maker = makers(name)[index]
    target = Path(folder) / name / f"{index}.npz"
    if target.exists():
        return name, geometry, -1, None
    try:
        shape = maker()
        shape, slope = shape if isinstance(shape, tuple) else (shape, None)
        size = max(tuple(shape.bounding_box().size))
        points, triangles = shape.tessellate(size * 0.0015, 0.2)
        vertices = np.array([tuple(p) for p in points])
        if slope:
            vertices = _bevel(vertices, slope)
        mesh = trimesh.Trimesh(vertices, np.array(triangles), process=True)
        mesh.merge_vertices(digits_vertex=5)
        mesh.update_faces(mesh.nondegenerate_faces())
        mesh.remove_unreferenced_vertices()
        vertices = np.asarray(mesh.vertices, float)
        vertices -= (vertices.max(0) + vertices.min(0)) / 2
        vertices /= np.linalg.norm(vertices, axis=1).max()
        faces = np.asarray(mesh.faces, np.int32)
        normals = corner_normals(vertices, faces)
    except Exception as error:  # the CAD kernel fails in many ways; the caller lists them all
        return name, geometry, 0, repr(error)
    save_mesh(target, vertices, faces, normals)
    return name, geometry, len(faces), None


def save_mesh(target, vertices, faces, normals):
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".tmp.npz")
    np.savez(part, vertices=vertices.astype("f4"), faces=faces, normals=normals.astype("f4"))
    os.replace(part, target)


def pack_meshes(cache, names, file):
    """Store vertices and faces of all geometries of some classes in one small file."""
    arrays = {}
    paths = {name: sorted(Path(cache, "meshes", name).glob("*.npz")) for name in names}
    absent = [name for name in names if not paths[name]]
    if absent:
        raise SystemExit(f"no meshes of {', '.join(absent)} in {cache}: run parts.py first")
    for path in itertools.chain(*paths.values()):
        with np.load(path) as mesh:
            small = np.uint16 if len(mesh["vertices"]) < 2**16 else np.int32
            key = f"{path.parent.name}/{path.stem}"
            arrays[f"{key}/vertices"] = mesh["vertices"]
            arrays[f"{key}/faces"] = mesh["faces"].astype(small)
    np.savez_compressed(file, **arrays)


def unpack_meshes(cache, file):
    """Write the meshes of a packed file into the cache; normals are computed anew."""
    with np.load(file) as packed:
        for key in packed.files:
            mesh, kind = key.rsplit("/", 1)
            target = Path(cache, "meshes", f"{mesh}.npz")
            if kind == "vertices" and not target.exists():
                vertices, faces = packed[key], packed[f"{mesh}/faces"].astype(np.int32)
                save_mesh(target, vertices, faces, corner_normals(vertices.astype(float), faces))


def load_mesh(cache, name, index):
    """(vertices [V, 3], faces [F, 3], corner normals [F, 3, 3]) of one geometry."""
    with np.load(Path(cache) / "meshes" / name / f"{index}.npz") as data:
        return data["vertices"], data["faces"], data["normals"]


def main(argv=None):
    parser = argparse.ArgumentParser(description="Tessellate all parts into the cache.")
    parser.add_argument("--cache", required=True, help="folder for meshes and other large files")
    parser.add_argument("--quick", action="store_true", help="a few classes, two geometries each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pack", metavar="FILE", help="store the base classes' meshes in one .npz")
    parser.add_argument("--unpack", metavar="FILE", help="take meshes from there; needs no CAD")
    args = parser.parse_args(argv)
    if args.pack or args.unpack:
        if args.unpack:
            unpack_meshes(args.cache, args.unpack)
        else:
            pack_meshes(args.cache, BASE, args.pack)
        return 0
    folder = str(Path(args.cache) / "meshes")
    tasks = [(k, i, folder) for k in [*BASE, *NOVEL] for i in range(len(makers(k)))]
    if args.quick:
        few = [*QUICK_BASE, *QUICK_NOVEL]
        tasks = [t for t in tasks if t[0] in few and (t[1] < 2 or t[0] in QUICK_NOVEL)]
    failed = 0
    with ProcessPoolExecutor(args.workers) as pool:
        for name, geometry, triangles, error in pool.map(build_mesh, tasks):
            if error:
                failed += 1
                print(f"FAILED {name} {geometry}: {error}", flush=True)
            elif triangles >= 0:
                print(f"{name} {geometry}: {triangles} triangles", flush=True)
    (Path(args.cache) / "classes.json").write_text(json.dumps(record(), indent=1) + "\n")
    return 1 if failed else 0


QUICK_BASE = ["hex_nut", "washer", "hex_bolt", "angle_bracket"]
QUICK_NOVEL = ["square_nut", "collar_screw", "castle_nut"]

if __name__ == "__main__":
    sys.exit(main())
