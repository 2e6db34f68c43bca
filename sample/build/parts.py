"""The machine parts of the small world, as triangle meshes.

    python sample/build/parts.py --cache CACHE_DIR

`BASE` are the kinds that the generator knows. `COMMON` are individuals of twelve of these kinds,
for the photos. `NOVEL` are kinds that no model has seen, only for photos. `BACKBONE` are kinds that
only the backbone sees, together with the kinds of `BASE` that are in no photo. Every class has
several geometries (sizes, standards, proportions). A geometry has a name such as
`HexNut/iso4032/M8-1.25`; `classes.json` records these names, and the tests compare them.

Many parts are standard parts of bd_warehouse; the others are modelled here with build123d. Each is
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


def _belt_pulley(radius, width, grooves, bore, hub):
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
    """Rim, spokes and bored hub, as overlapping solids, which do not disturb rays."""
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


def _hex_nut(flats, height, bore, chamfer, collar):
    """A hexagon with chamfered corners and, if collar > 0, a round locking collar on top."""
    b = _cad()
    corner, face = flats * 0.58, flats * 0.49
    lathe = [(0, 0), (face, 0), (corner, chamfer), (corner, height - chamfer), (face, height)]
    turned = b.make_face(b.Plane.XZ * b.Polyline([*lathe, (0, height)], close=True))
    body = b.extrude(b.RegularPolygon(flats / 2, 6, major_radius=False), height)
    body = body & b.revolve(turned, axis=b.Axis.Z)
    if collar:
        body += b.Pos(0, 0, height + collar / 2) * b.Cylinder(flats * 0.44, collar)
    return _bore(body, bore, height * 4)


def _flange_nut(flats, height, bore, flange, rise):
    """A hexagon on a conical flange of radius `flange`, which rises by `rise`."""
    b = _cad()
    body = b.extrude(b.RegularPolygon(flats / 2, 6, major_radius=False), height)
    rim = rise * 0.25
    body += b.Pos(0, 0, rim / 2) * b.Cylinder(flange, rim)
    body += b.Pos(0, 0, rim + (rise - rim) / 2) * b.Cone(flange, flats * 0.5, rise - rim)
    return _bore(body, bore, height * 4)


def _washer(outer, inner, thickness):
    return _bore(_cad().Cylinder(outer, thickness), inner, thickness * 3)


def _blind_flange(radius, thickness, bolts, hole, circle, face, rise):
    """A disc with `bolts` holes on a circle and a raised face of radius `face`."""
    b = _cad()
    part = b.Cylinder(radius, thickness)
    part += b.Pos(0, 0, (thickness + rise) / 2) * b.Cylinder(face, rise)
    for i in range(bolts):
        where = b.Rot(0, 0, 360 * i / bolts) * b.Pos(circle, 0, 0)
        part -= where * b.Cylinder(hole, thickness * 4)
    return part


def _ball_bearing(outer, inner, width, balls, ball, race):
    """Two rings, open by `race` between them, and balls, as overlapping solids."""
    b = _cad()
    middle = (outer + inner) / 2
    rings = [(outer, middle + race / 2), (middle - race / 2, inner)]
    solids = [_bore(b.Cylinder(far, width), near, width) for far, near in rings]
    for i in range(balls):
        solids.append(b.Rot(0, 0, 360 * i / balls) * b.Pos(middle, 0, 0) * b.Sphere(ball))
    return b.Compound(solids)


def _recess(drive, width, depth):
    """The recess of a screw's head, whose top is at zero: a slot, a cross or a hexagon."""
    b = _cad()
    if drive == "hex":
        return b.Pos(0, 0, -depth) * b.extrude(
            b.RegularPolygon(width / 2, 6, major_radius=False), depth * 2
        )
    slot = b.Box(width * 4 if drive == "slot" else width * 1.4, width * 0.3, depth * 2)
    return slot if drive == "slot" else slot + b.Rot(0, 0, 90) * slot


def _screw(head, shank, length, drive, neck=1.0):
    """A shank under `head`, whose top is at zero; its lower half is `neck` times as thick."""
    b = _cad()
    bottom, half = head.bounding_box().min.Z, length / 2
    part = head + b.Pos(0, 0, bottom - half / 2) * b.Cylinder(shank, half)
    part += b.Pos(0, 0, bottom - half * 1.5) * b.Cylinder(shank * neck, half)
    return part if drive is None else part - drive


def _countersunk_screw(head, shank, length, drive, neck):
    b = _cad()
    depth = head - shank
    cone = b.Pos(0, 0, -depth / 2) * b.Cone(shank, head, depth)
    return _screw(cone, shank, length, _recess(drive, head, depth * 0.6), neck)


def _hex_bolt(flats, depth, shank, length, neck):
    b = _cad()
    head = b.Pos(0, 0, -depth) * b.extrude(
        b.RegularPolygon(flats / 2, 6, major_radius=False), depth
    )
    return _screw(head, shank, length, None, neck)


def _socket_screw(head, depth, shank, length, neck):
    b = _cad()
    cylinder = b.Pos(0, 0, -depth / 2) * b.Cylinder(head, depth)
    return _screw(cylinder, shank, length, _recess("hex", head * 1.1, depth * 0.6), neck)


def _u_bolt(half, wire, leg, corner, nut):
    """A rod bent to a U, `half` its half width, with a nut on each leg at the fraction `nut`."""
    b = _cad()
    flat, slack = half - corner, corner * (1 - math.sqrt(0.5))
    lines = [b.Line((-half, 0, 0), (-half, 0, leg)), b.Line((half, 0, leg), (half, 0, 0))]
    for side in (-1, 1):
        middle = (side * (half - slack), 0, leg + corner - slack)
        ends = [(side * half, 0, leg), (side * flat, 0, leg + corner)]
        lines.append(b.ThreePointArc(ends[0], middle, ends[1]))
    if flat:
        lines.append(b.Line((-flat, 0, leg + corner), (flat, 0, leg + corner)))
    profile = b.Pos(-half, 0, 0) * b.Circle(wire)
    part = b.sweep(profile, path=b.Wire(lines))
    for side in (-1, 1):
        hexagon = b.RegularPolygon(wire * 1.55, 6, major_radius=False, rotation=30)
        part += b.Pos(side * half, 0, leg * nut) * b.extrude(hexagon, wire * 1.6)
    return part


def _hex_key(flats, short, long, bend, ball):
    """An L of hexagonal rod; with `ball`, the long leg ends in a ball on a neck."""
    b = _cad()
    slack = bend * (1 - math.sqrt(0.5))
    arc = b.ThreePointArc((0, 0, bend), (slack, 0, slack), (bend, 0, 0))
    path = b.Wire([b.Line((0, 0, long), (0, 0, bend)), arc, b.Line((bend, 0, 0), (short, 0, 0))])
    profile = b.RegularPolygon(flats / 2, 6, major_radius=False, rotation=30)
    part = b.sweep(b.Pos(0, 0, long) * profile, path=path)
    if ball:
        part += b.Pos(0, 0, long + flats * 0.2) * b.Cylinder(flats * 0.32, flats * 0.6)
        part += b.Pos(0, 0, long + flats * 0.7) * b.Sphere(flats * 0.54)
    return part


def _pipe_tee(radius, wall, run, branch, branch_radius, collar, depth):
    """A straight pipe of half length `run` with a branch and, if collar > 1, thickened mouths."""
    b = _cad()
    side = b.Rot(0, 90, 0)
    outer = b.Cylinder(radius, 2 * run)
    outer += b.Pos(branch / 2, 0, 0) * side * b.Cylinder(branch_radius, branch)
    if collar > 1:
        for end in (-1, 1):
            place = b.Pos(0, 0, end * (run - depth / 2))
            outer += place * b.Cylinder(radius * collar, depth)
        mouth = b.Pos(branch - depth / 2, 0, 0) * side
        outer += mouth * b.Cylinder(branch_radius * collar, depth)
    outer -= b.Cylinder(radius - wall, 2 * run + 1)
    return outer - b.Pos(branch, 0, 0) * side * b.Cylinder(branch_radius - wall, 2 * branch)


def _flanged_bushing(bore, outer, length, flange, thickness, chamfer):
    """A sleeve with a collar at one end; both mouths of the bore are chamfered."""
    b = _cad()
    points = [(bore + chamfer, 0), (flange, 0), (flange, thickness), (outer, thickness)]
    points += [(outer, length - chamfer), (outer - chamfer, length)]
    points += [(bore + chamfer * 0.3, length), (bore, length - chamfer * 0.3), (bore, chamfer)]
    face = b.make_face(b.Plane.XZ * b.Polyline(points, close=True))
    return b.revolve(face, axis=b.Axis.Z)


def _clevis(width, gap, prong, hole, shank, length, turned):
    """A fork head: two prongs with a cross hole on a bored shank; `turned` from round bar."""
    b = _cad()
    height = prong + width * 0.35
    body = b.Cylinder(width * 0.56, height) if turned else b.Box(width, width, height)
    part = b.Pos(0, 0, height / 2) * body
    across = b.Pos(0, 0, height - width / 2) * b.Rot(0, 90, 0)
    tip = b.Pos(0, 0, height - width / 4) * b.Box(2 * width, 2 * width, width / 2)
    part -= tip - across * b.Cylinder(width / 2, 2 * width)
    part -= b.Pos(0, 0, height - prong / 2) * b.Box(gap, 2 * width, prong)
    part -= across * b.Cylinder(hole, 2 * width)
    part += b.Pos(0, 0, -length / 2) * b.Cylinder(shank, length)
    return part - b.Pos(0, 0, -length) * b.Cylinder(shank * 0.6, length)


def _star_knob(lobes, radius, wave, thickness, hub, length, bore):
    """A knob with `lobes` rounded lobes, their depth a fraction of its radius, on a hub."""
    b = _cad()

    def star(scale):
        points = []
        for i in range(lobes * 12):
            turn = 2 * math.pi * i / (lobes * 12)
            r = scale * radius * (1 - wave * (0.5 - 0.5 * math.cos(lobes * turn)))
            points.append((r * math.cos(turn), r * math.sin(turn)))
        return b.make_face(b.Polyline(points, close=True))

    part = b.extrude(star(1), thickness * 0.7)
    part += b.Pos(0, 0, thickness * 0.7) * b.extrude(star(1), thickness * 0.3, taper=25)
    part += b.Pos(0, 0, -length / 2) * b.Cylinder(hub, length)
    return _bore(part, bore, (thickness + length) * 2)


def _cam_disc(base, nose, lift, thickness, bore, hub, length):
    """A plate cam: the hull of two circles `lift` apart, bored at the first; a hub, a keyway.

    Where the nose's circle holds the base's, the cam is an eccentric disc.
    """
    b = _cad()
    face = b.Circle(base) + b.Pos(lift, 0) * b.Circle(nose)
    if lift > abs(base - nose):
        c = (base - nose) / lift
        s = math.sqrt(1 - c * c)
        ends = [(x + r * c, r * s) for x, r in ((0, base), (lift, nose))]
        face += b.make_face(b.Polyline([*ends, *((x, -y) for x, y in ends[::-1])], close=True))
    part = b.extrude(face, thickness)
    part += b.Pos(0, 0, (thickness + length) / 2) * b.Cylinder(hub, thickness + length)
    part -= b.Pos(-bore, 0, 0) * b.Box(bore * 0.7, bore * 0.6, 4 * (thickness + length))
    return _bore(part, bore, (thickness + length) * 2)


def _chain_link(pitch, radius, waist, thickness, space, pin):
    """An outer link of a roller chain: two waisted plates `space` apart, joined by two pins."""
    b = _cad()
    hollow = (pitch**2 / 4 + waist**2 - radius**2) / (2 * (radius - waist))
    far = waist + hollow  # the centre of the circle that touches both ends of a plate
    x, y = pitch / 2 * hollow / (radius + hollow), far * radius / (radius + hollow)
    corners = [(-pitch / 2, 0), (-x, y), (x, y), (pitch / 2, 0), (x, -y), (-x, -y)]
    face = b.make_face(b.Polyline(corners, close=True))
    for side in (-1, 1):
        face -= b.Pos(0, side * far) * b.Circle(hollow)
    for side in (-1, 1):
        face += b.Pos(side * pitch / 2, 0) * b.Circle(radius)
    plate = b.extrude(face, thickness)
    part = b.Pos(0, 0, space / 2) * plate + b.Pos(0, 0, -space / 2 - thickness) * plate
    for side in (-1, 1):
        length = space + 2 * thickness + pin * 0.8
        part += b.Pos(side * pitch / 2, 0, 0) * b.Cylinder(pin, length)
    return part


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
            *_many(
                _hex_nut,
                [
                    (18, 10, 3.6, 1, 0),
                    (18, 9, 5.2, 1.5, 3),
                    (18, 8, 7.7, 1, 0),
                    (18, 11, 6.8, 1, 7),
                ],
            ),
        ],
    ),
    "flange_nut": (
        "flange nut",
        FLAT,
        [
            *_standard("HexNutWithFlange", "din1665", ["M5-0.8", "M8-1.25", "M12-1.75", "M20-2.5"]),
            *_many(
                _flange_nut,
                [
                    (13, 9, 4.4, 8.8, 2.5),
                    (13, 10, 3.9, 9.4, 3.5),
                    (13, 8, 4.6, 11, 2.2),
                    (13, 11, 3.4, 7.7, 3),
                ],
            ),
        ],
    ),
    "washer": (
        "washer",
        FLAT,
        [
            *_standard("PlainWasher", "iso7089", ["M5", "M10", "M24"]),
            *_standard("PlainWasher", "iso7093", ["M6", "M12", "M20"]),
            *_standard("PlainWasher", "iso7094", ["M8", "M16"]),
            *_many(_washer, [(10, 5.4, 3), (10, 3.8, 1.5), (10, 6, 2.4), (10, 7.8, 1.6)]),
        ],
    ),
    "ball_bearing": (
        "ball bearing",
        FLAT,
        [
            *_bearings(
                "SingleRowDeepGrooveBallBearing",
                ["M4-13-5", "M5-19-6", "M8-16-4", "M9-26-8", "M6-13-3.5"],
            ),
            *_many(
                _ball_bearing,
                [
                    (10, 4, 4, 9, 1.3, 2),
                    (10, 3, 5, 7, 1.8, 2.6),
                    (10, 5, 3.5, 12, 1.1, 1.6),
                    (10, 6, 3, 15, 0.8, 1.2),
                    (10, 2.5, 4, 6, 2, 2.4),
                ],
            ),
        ],
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
                (21, 2, 7, 5, False),
                (34, 2, 8, 12, True),
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
        [
            *_standard(
                "HexHeadScrew", "iso4017", ["M5-0.8", "M8-1.25", "M12-1.75", "M20-2.5"], [2.5, 4, 3]
            ),
            *_many(
                _hex_bolt,
                [
                    (13, 5, 4, 20, 0.85),
                    (12, 7, 3.6, 18, 1),
                    (15, 5, 4.4, 26, 1),
                    (13, 4, 3, 16, 0.75),
                ],
            ),
        ],
    ),
    "socket_screw": (
        "socket screw",
        LONG,
        [
            *_standard(
                "SocketHeadCapScrew",
                "iso4762",
                ["M4-0.7", "M6-1", "M10-1.5", "M16-2"],
                [2.5, 4, 3],
            ),
            *_many(
                _socket_screw,
                [
                    (5, 5, 3, 20, 0.8),
                    (4.6, 4, 3.2, 16, 1),
                    (6, 5, 2.8, 18, 1),
                    (5.4, 7, 3.6, 26, 0.9),
                ],
            ),
        ],
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
            *_many(
                _countersunk_screw,
                [
                    (6, 3, 18, "hex", 1),
                    (5.4, 2.6, 20, "slot", 0.85),
                    (6.4, 3.2, 16, "cross", 0.8),
                    (7, 3.2, 22, "cross", 1),
                ],
            ),
        ],
    ),
    "blind_flange": (
        "blind flange",
        FLAT,
        [
            *[
                (f"BlindFlange/{n}/{c}", lambda n=n, c=c: _flange("BlindFlange", n, c))
                for n, c in [("1", 150), ("2", 300), ("3", 150), ("4", 300), ("6", 150)]
            ],
            *_many(
                _blind_flange,
                [
                    (20, 4, 4, 2.6, 15, 9, 1),
                    (20, 4, 8, 1.8, 16, 11, 1.2),
                    (20, 3.5, 6, 3, 14.5, 8, 1),
                    (20, 5, 12, 1.8, 16.5, 13, 1.8),
                ],
            ),
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
    "belt_pulley": (
        "belt pulley",
        FLAT,
        _many(
            _belt_pulley,
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
                (16, 12.5, 8, 2),
                (18, 8, 12, 2),
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

# Kinds that only the backbone has seen, in the format of BASE.
BACKBONE = {
    "u_bolt": (
        "u-bolt",
        [(94, 0), (94, 0), (-94, 0), (94, 0), (0, 0)],
        _many(
            _u_bolt,
            [
                (10, 3, 12, 10, 0.35),
                (7, 2.8, 22, 7, 0.2),
                (14, 1.8, 12, 14, 0.4),
                (10, 2.2, 22, 3, 0.15),
                (16, 3, 14, 5, 0.3),
                (8, 1.2, 20, 8, 0.5),
            ],
        ),
    ),
    "hex_key": (
        "hex key",
        [(90, 0), (90, 0), (-90, 0), (-90, 0), (90, 0)],
        _many(
            _hex_key,
            [
                (5, 24, 46, 6, False),
                (3, 12, 60, 4, True),
                (9, 28, 38, 12, False),
                (3, 30, 44, 4, False),
                (8.5, 20, 60, 9, True),
                (5, 30, 34, 18, False),
            ],
        ),
    ),
    "pipe_tee": (
        "pipe tee",
        [(90, 0), (90, 0), (0, 0), (90, 0), (0, 90)],
        _many(
            _pipe_tee,
            [
                (6, 1, 14, 14, 6, 1.28, 5),
                (4.5, 0.8, 18, 10, 4.5, 1, 0),
                (8, 1.2, 12, 14, 5, 1.2, 4),
                (4.5, 0.8, 14, 20, 4.5, 1.4, 4),
                (8, 1, 13, 20, 8, 1.45, 2),
                (9, 1, 16, 18, 4, 1, 0),
            ],
        ),
    ),
    "flanged_bushing": (
        "flanged bushing",
        [(0, 0), (0, 0), (104, 0), (180, 0), (104, 0)],
        _many(
            _flanged_bushing,
            [
                (8, 10, 20, 15, 2.5, 0.8),
                (5, 10, 24, 14, 4, 1.5),
                (10, 11.5, 12, 16, 1.5, 0.4),
                (4, 6, 20, 14, 3, 1),
                (9, 14, 16, 18, 6, 2.5),
                (6, 7.5, 30, 11, 2, 0.6),
            ],
        ),
    ),
    "clevis": (
        "clevis",
        [(90, 0), (90, 0), (0, 90), (0, 90), (0, 0)],
        _many(
            _clevis,
            [
                (12, 6.5, 15, 3, 4.5, 10, False),
                (11, 4, 30, 2.5, 4, 8, False),
                (14, 8, 14, 4, 6, 18, False),
                (14, 4, 20, 3.5, 7, 5, True),
                (16, 9, 22, 3.5, 4, 6, False),
                (11, 5, 13, 2.2, 3.5, 22, True),
            ],
        ),
    ),
    "star_knob": (
        "star knob",
        [(0, 0), (0, 0), (180, 0), (180, 0), (60, 0)],
        _many(
            _star_knob,
            [
                (5, 20, 0.3, 10, 9, 9, 4),
                (6, 20, 0.18, 8, 7, 14, 3),
                (3, 20, 0.42, 10, 7, 8, 3),
                (8, 20, 0.2, 13, 11, 5, 5),
                (4, 20, 0.5, 8, 7.5, 12, 4),
                (7, 20, 0.32, 6, 12, 10, 6),
            ],
        ),
    ),
    "cam_disc": (
        "cam disc",
        [(0, 0), (0, 0), (0, 0), (180, -18), (0, 0)],
        _many(
            _cam_disc,
            [
                (8, 16, 7, 6, 5, 8, 6),
                (14, 5, 18, 5, 4, 8, 5),
                (12, 4, 22, 8, 4, 7, 6),
                (10, 20, 9, 10, 4, 7, 7),
                (16, 10, 14, 3, 8, 11, 5),
                (10, 7, 24, 5, 5, 8, 8),
            ],
        ),
    ),
    "chain_link": (
        "chain link",
        [(0, 0), (0, 0), (90, 0), (90, 0), (0, 0)],
        _many(
            _chain_link,
            [
                (24, 8, 6.5, 2, 10, 3),
                (18, 8, 4.5, 1.6, 4, 2.6),
                (16, 7, 5.5, 2.5, 14, 3.4),
                (38, 8, 6.8, 4, 7, 3),
                (20, 9, 5, 1.5, 18, 3),
                (24, 6.5, 3, 3.5, 15, 4),
            ],
        ),
    ),
}

# The common kinds, which the generator knows: class -> (super name, description, [(geometry name,
# maker)]) of the individuals in the photos. No generator and no backbone has seen an individual.
# Sizes of one standard are nearly the same mesh once they are scaled to one size, so that most
# individuals differ in another proportion; individuals.py measures how much.
COMMON = {
    "ball_bearing": (
        "bearing",
        "single-row deep-groove ball bearing",
        _many(
            _ball_bearing,
            [
                (10, 4.4, 3.5, 10, 1.2, 2.4),
                (10, 3.4, 5.5, 8, 1.8, 2.2),
                (10, 5.6, 4.5, 11, 1.3, 2),
                (10, 2.8, 3.5, 8, 1.6, 3),
                (10, 5, 5.5, 9, 1.6, 2.8),
                (10, 3.8, 3, 12, 1.1, 1.5),
                (10, 6.4, 4, 13, 1, 1.6),
                (10, 2.2, 4.5, 7, 2.1, 3),
            ],
        ),
    ),
    "blind_flange": (
        "flange",
        "blind pipe flange",
        _many(
            _blind_flange,
            [
                (20, 4, 6, 2.2, 15.5, 10, 1),
                (20, 3, 10, 2.2, 16, 10, 1.6),
                (20, 5, 5, 2.8, 14.5, 8, 1.6),
                (20, 3.5, 12, 1.2, 17, 14, 0.8),
                (20, 4, 3, 2.4, 15, 11, 1.2),
                (20, 5, 7, 2, 16, 9, 2.2),
                (20, 3, 4, 3.4, 14, 7, 1),
                (20, 4, 9, 2.2, 15.5, 11, 1.4),
            ],
        ),
    ),
    "countersunk_screw": (
        "screw",
        "screw with a countersunk head",
        _many(
            _countersunk_screw,
            [
                (5, 3.2, 18, "slot", 1),
                (6.5, 2.6, 20, "cross", 0.7),
                (6, 2.6, 14, "slot", 0.75),
                (5.5, 3, 26, "hex", 0.8),
                (7, 2.8, 16, "hex", 0.85),
                (5, 2.9, 22, "cross", 0.8),
                (7, 4, 20, "slot", 0.6),
                (5.8, 2.4, 12, "cross", 0.9),
            ],
        ),
    ),
    "flange_nut": (
        "nut",
        "hexagon nut with a flange",
        _many(
            _flange_nut,
            [
                (13, 9, 4.6, 7.8, 2.2),
                (13, 8, 3.4, 10.2, 2.5),
                (13, 11, 4.2, 11.2, 3.5),
                (13, 7, 5, 8.6, 2),
                (13, 10, 3.6, 8.2, 4.5),
                (13, 8, 4.9, 10.4, 2),
                (13, 12, 4.2, 9.6, 2.2),
                (13, 9, 3.2, 11.6, 2.8),
            ],
        ),
    ),
    "hex_bolt": (
        "screw",
        "bolt with a hexagon head",
        _many(
            _hex_bolt,
            [
                (14, 5, 3.2, 20, 1),
                (11, 6, 4.2, 24, 1),
                (15, 6, 4, 16, 0.8),
                (12, 4, 3, 26, 0.8),
                (13, 8, 3.2, 18, 1),
                (16, 5, 3.4, 24, 0.85),
                (12, 5, 4.8, 28, 0.75),
                (14, 7, 4.6, 20, 0.7),
            ],
        ),
    ),
    "hex_nut": (
        "nut",
        "hexagon nut",
        _many(
            _hex_nut,
            [
                (18, 9, 4.1, 1.5, 0),
                (18, 10, 5.7, 1.2, 4),
                (18, 10, 7, 0.6, 0),
                (18, 8, 4.6, 2, 2.5),
                (18, 12, 4.5, 0.3, 0),
                (18, 7, 7.1, 1.5, 0),
                (18, 9, 6.6, 2, 2.5),
                (18, 13, 4.9, 3, 0),
            ],
        ),
    ),
    "shaft_collar": (
        "collar",
        "clamping ring with a slit",
        _many(
            _shaft_collar,
            [
                (16, 5.9, 9, 2.5),
                (18, 11.9, 9, 3),
                (15, 5.5, 9, 3.5),
                (20, 16.8, 9, 2.5),
                (16, 10.5, 14, 2),
                (17, 5.6, 7, 4),
                (18, 15.6, 12, 2),
                (14, 4, 13, 2),
            ],
        ),
    ),
    "socket_screw": (
        "screw",
        "screw with a cylinder head and a hexagon socket",
        _many(
            _socket_screw,
            [
                (3.8, 5, 3.2, 18, 1),
                (6, 4, 3, 22, 1),
                (4.8, 7, 2.4, 18, 0.75),
                (5.4, 3.2, 3.2, 16, 0.8),
                (6, 5, 3.9, 24, 0.65),
                (4.4, 3.4, 3, 24, 0.8),
                (5.6, 5, 2.4, 16, 1),
                (4.3, 7, 3.4, 22, 1),
            ],
        ),
    ),
    "spur_gear": (
        "gear",
        "spur gear",
        _many(
            _spur_gear,
            [
                (13, 2, 9, 4, False),
                (22, 2, 8, 8, True),
                (15, 2, 7, 6, True),
                (26, 2, 9, 12, False),
                (17, 2, 8, 4, False),
                (30, 2, 9, 8, True),
                (19, 2, 10, 9, False),
                (36, 2, 8, 14, False),
            ],
        ),
    ),
    "sprocket": (
        "sprocket",
        "sprocket for a roller chain",
        _many(
            _sprocket,
            [
                (11, 14, 0, 4),
                (17, 22, 4, 4),
                (13, 16, 0, 5),
                (22, 24, 6, 4),
                (15, 12, 0, 4),
                (19, 34, 4, 4),
                (26, 26, 4, 5),
                (30, 50, 6, 5),
            ],
        ),
    ),
    "belt_pulley": (
        "pulley",
        "belt pulley with V grooves",
        _many(
            _belt_pulley,
            [
                (22, 12, 1, 4, 15),
                (20, 26, 4, 4, 8),
                (24, 16, 2, 10, 15),
                (20, 8, 1, 3, 6),
                (28, 22, 3, 8, 16),
                (18, 14, 1, 3, 12),
                (20, 14, 2, 7, 10),
                (16, 26, 3, 5, 8),
            ],
        ),
    ),
    "washer": (
        "washer",
        "plain washer",
        _many(
            _washer,
            [
                (10, 4.5, 1.8),
                (10, 6.3, 1.6),
                (10, 2.4, 2),
                (10, 4.9, 4),
                (10, 6.8, 2.6),
                (10, 4.2, 1.2),
                (10, 4.7, 1.4),
                (10, 7.3, 2),
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
    """All (geometry name, maker) of a class: first the rendered, then the photographed."""
    return rendered(name) + photographed(name)


def rendered(name):
    """The (geometry name, maker) that generator or backbone may see: none of a novel class."""
    return [] if name in NOVEL else (BASE | BACKBONE)[name][2]


def photographed(name):
    """The (geometry name, maker) in the photos of a class: none of a class without photos."""
    return COMMON[name][2] if name in COMMON else NOVEL[name][3] if name in NOVEL else []


def poses(name):
    return NOVEL[name][2] if name in NOVEL else (BASE | BACKBONE)[name][1]


def described(name):
    """(super name, description) of a class with photos."""
    return (COMMON[name] if name in COMMON else NOVEL[name])[:2]


def individuals(name, split):
    """Indices into `makers` of the geometries in the photos of a split."""
    first = len(rendered(name))
    return range(first, first + len(photographed(name)))[SPLIT_GEOMETRIES[split]]


def kinds(model, quick=False):
    """The classes whose renders a "generator" or a "backbone" sees."""
    if model == "generator":
        return QUICK_BASE if quick else list(BASE)
    # No kind that has photos: a backbone of ImageNet has not seen the user's parts either.
    return QUICK_BACKBONE if quick else [n for n in [*BASE, *BACKBONE] if n not in COMMON]


def seen(names):
    """{class: its caption and the geometries that were rendered}, as models record it."""
    entries = BASE | BACKBONE
    return {
        name: {"caption": entries[name][0], "geometries": [g for g, _ in entries[name][2]]}
        for name in names
    }


def record():
    """The geometries that generator and backbone have seen, and of the photos: classes.json."""
    photos = {}
    for name in [*COMMON, *NOVEL]:
        names = [g for g, _ in photographed(name)]
        super_name, description = described(name)
        photos[name] = {
            "super_class": super_name,
            "description": description,
            "geometries": {s: names[cut] for s, cut in SPLIT_GEOMETRIES.items()},
        }
    return {
        "generator": seen(kinds("generator")),
        "backbone": seen(kinds("backbone")),
        "common": {name: photos[name] for name in COMMON},
        "novel": {name: photos[name] for name in NOVEL},
    }


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
    parser.add_argument("--classes", nargs="+", help="default: all")
    parser.add_argument("--quick", action="store_true", help="a few classes, two geometries each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pack", metavar="FILE", help="store the base classes' meshes in one .npz")
    parser.add_argument("--unpack", metavar="FILE", help="take meshes from there; needs no CAD")
    args = parser.parse_args(argv)
    if args.pack or args.unpack:
        if args.unpack:
            unpack_meshes(args.cache, args.unpack)
        else:
            pack_meshes(args.cache, [*BASE, *BACKBONE], args.pack)
        return 0
    folder = str(Path(args.cache) / "meshes")
    tasks = [(k, i, folder) for k in [*BASE, *BACKBONE, *NOVEL] for i in range(len(makers(k)))]
    if args.quick:
        few = [*QUICK_BASE, *QUICK_BACKBONE, *QUICK_NOVEL]
        tasks = [t for t in tasks if t[0] in few and (t[1] < 2 or t[1] >= len(rendered(t[0])))]
    tasks = [t for t in tasks if args.classes is None or t[0] in args.classes]
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
QUICK_BACKBONE = ["angle_bracket", "hinge", "star_knob"]
QUICK_COMMON = ["hex_nut", "washer", "hex_bolt"]
QUICK_NOVEL = ["square_nut", "collar_screw", "castle_nut"]

if __name__ == "__main__":
    sys.exit(main())
