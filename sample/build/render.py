"""A small ray-casting renderer: one machine part on a table, from a mesh and a condition.

embreex (through its scenes) answers the rays, numpy does the shading: a sun-like lamp with a soft
shadow, a dome of sky light with occlusion (so that parts stand on the table), a procedural
surrounding that metal reflects, and procedural surfaces for parts and tables. The mask is exact: it
holds the pixels whose camera rays hit the part.

A *condition* is a dictionary of plain values that describes everything except the mesh.
`draw_condition` draws a condition, `caption` describes it in words, and `render` depends only on
mesh and condition.
"""

import copy
import math
from functools import cache

import numpy as np

# name -> (words in captions, sRGB colour, metallic, roughness, texture)
MATERIALS = {
    "steel": (["steel", "brushed steel"], (0.66, 0.67, 0.70), 1.0, 0.28, "brushed"),
    "galvanised": (["galvanised", "zinc"], (0.70, 0.73, 0.76), 0.75, 0.50, "spangle"),
    "chrome": (["chrome", "shiny"], (0.86, 0.87, 0.90), 1.0, 0.08, "plain"),
    "brass": (["brass"], (0.88, 0.70, 0.30), 1.0, 0.24, "brushed"),
    "copper": (["copper"], (0.86, 0.47, 0.31), 1.0, 0.26, "brushed"),
    "rust": (["rusty"], (0.50, 0.26, 0.12), 0.10, 0.90, "rust"),
    "black": (["black", "black oxide"], (0.13, 0.13, 0.15), 0.35, 0.35, "plain"),
    "red": (["red", "red painted"], (0.76, 0.09, 0.08), 0.0, 0.30, "paint"),
    "blue": (["blue", "blue painted"], (0.10, 0.25, 0.68), 0.0, 0.30, "paint"),
    "green": (["green", "green painted"], (0.10, 0.46, 0.20), 0.0, 0.30, "paint"),
    "yellow": (["yellow", "yellow painted"], (0.93, 0.73, 0.08), 0.0, 0.30, "paint"),
    "white": (["white plastic", "white"], (0.90, 0.90, 0.88), 0.0, 0.40, "plain"),
    "orange": (["orange plastic", "orange"], (0.93, 0.42, 0.08), 0.0, 0.40, "plain"),
}
# name -> words in captions, each with its preposition
BACKGROUNDS = {
    "wood": ["on a wooden table", "on wood"],
    "mat": ["on a green mat"],
    "concrete": ["on a concrete floor", "on grey concrete"],
    "paper": ["on white paper", "on a white background"],
    "cloth": ["on a dark cloth", "on a black background"],
    "tray": ["in a blue tray"],
    "sand": ["on a sand-coloured workbench"],
    "tiles": ["on a tiled floor"],
    "plate": ["on a steel plate"],
    "cardboard": ["on cardboard"],
}
STATES = {"clean": [""], "worn": ["worn", "scratched"], "dirty": ["dirty", "oily"]}


@cache
def noise_tile(dim, size, slope, seed):
    """A periodic Gaussian random field with spectrum f^-slope, zero mean, unit deviation."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.fftn(rng.standard_normal((size,) * dim))
    grid = np.meshgrid(*[np.fft.fftfreq(size) * size] * dim, indexing="ij")
    radius = np.sqrt(sum(g * g for g in grid))
    radius[(0,) * dim] = 1
    field = np.fft.ifftn(spectrum * radius**-slope).real
    field -= field.mean()
    return (field / field.std()).astype(np.float32)


def sample_noise(points, scale, slope=1.6, seed=0):
    """Random field at `points` [N, 2 or 3], `scale` tiles a unit; about N(0, 1)."""
    dim = points.shape[1]
    size = 512 if dim == 2 else 96
    tile = noise_tile(dim, size, slope if dim == 2 else slope + 0.5, seed)
    index = np.floor(points * (scale * size)).astype(np.int32) % size
    return tile[tuple(index.T)]


def smoothstep(low, high, x):
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def linear(colour):
    return np.asarray(colour, np.float32) ** 2.2


def mix(a, b, t):
    return a + (b - a) * t[:, None]


def dot(a, b):
    """Scalar products of rows [N, 3]; a sum over an axis of three is several times slower."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


class Part:
    """A mesh that rays can hit: embree scene, corner normals [F, 3, 3], vertices [V, 3]."""

    def __init__(self, vertices, faces, normals):
        from embreex import rtcore_scene
        from embreex.mesh_construction import TriangleMesh

        self.vertices, self.normals = vertices, normals
        self.scale = np.ones(3, np.float32)  # from the scene to this part
        self.scene = rtcore_scene.EmbreeScene()
        triangles = np.ascontiguousarray(vertices[faces], dtype=np.float32)
        self.mesh = TriangleMesh(self.scene, triangles)

    def stretched(self, factor):
        """The part, `factor` times as long along z and scaled back into the unit sphere.

        It shares the scene, because a new scene takes as long as a small picture: rays are scaled.
        """
        part = copy.copy(self)
        vertices = self.vertices * np.array([1, 1, factor], np.float32)
        size = np.linalg.norm(vertices, axis=1).max()
        part.vertices = vertices / size
        part.scale = np.array([1, 1, factor], np.float32) / size
        return part

    def _run(self, origins, directions, **query):
        if (self.scale != 1).any():
            origins, directions = origins / self.scale, directions / self.scale
        return self.scene.run(origins, directions, **query)

    def hit(self, origins, directions):
        """(triangle or -1, distance, interpolated normal or 0) for each ray."""
        out = self._run(origins, directions, query="INTERSECT", output=1)
        face, u, v = out["primID"], out["u"], out["v"]
        hits = np.flatnonzero(face >= 0)
        corner = self.normals[face[hits]]
        if (self.scale != 1).any():
            corner = corner / self.scale
            corner /= np.maximum(np.linalg.norm(corner, axis=2, keepdims=True), 1e-9)
        u, v = u[hits, None], v[hits, None]
        seen = corner[:, 0] * (1 - u - v)
        seen += corner[:, 1] * u + corner[:, 2] * v
        seen /= np.maximum(np.sqrt(dot(seen, seen)), 1e-9)[:, None]
        normal = np.zeros((len(face), 3), np.float32)
        normal[hits] = seen
        return face, out["tfar"], normal

    def blocked(self, origins, directions):
        """float32, 1 where a ray hits the part and 0 where it goes free."""
        return (self._run(origins, directions, query="OCCLUDED") != -1).astype(np.float32)


def direction(azimuth, elevation):
    """Unit vector from degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    vector = (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))
    return np.array(vector, np.float32)


def rotation(axis, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = [(1, 2), (2, 0), (0, 1)]["xyz".index(axis)]
    out = np.eye(3, dtype=np.float32)
    out[i, i] = out[j, j] = c
    out[i, j], out[j, i] = -s, s
    return out


def surface(points, cond):
    """Colour (linear), metallic and roughness of the part at object points [N, 3]."""
    _, colour, metallic, rough, texture = MATERIALS[cond["material"]]
    offset = np.array(cond["offset"], np.float32)
    where = points + offset
    count = len(points)
    tint = np.array(cond["tint"], np.float32)
    albedo = np.tile(linear(colour) * tint, (count, 1))
    metal = np.full(count, metallic, np.float32)
    roughness = np.full(count, rough, np.float32)
    if texture == "brushed":
        grain = sample_noise(where * np.array([1, 1, 0.06], np.float32), 0.9, 1.0)
        albedo *= (1 + 0.07 * grain)[:, None]
        roughness += 0.05 * grain
    elif texture == "spangle":
        spots = sample_noise(where, 0.5, 1.2)
        albedo *= (1 + 0.11 * np.tanh(spots))[:, None]
    elif texture == "rust":
        coarse, fine = sample_noise(where, 0.25, 1.6), sample_noise(where, 0.6, 0.9, 1)
        albedo = mix(
            linear((0.30, 0.14, 0.08)), linear((0.70, 0.37, 0.14)), smoothstep(-1.4, 1.4, coarse)
        )
        albedo *= (1 + 0.22 * fine)[:, None]
    if cond["state"] == "worn" and texture != "rust":
        chips = smoothstep(0.75, 0.95, sample_noise(where, 0.3, 1.3, 2) + cond["amount"] * 0.5)
        under = linear((0.55, 0.55, 0.57) if metallic < 0.3 else (0.36, 0.33, 0.31))
        albedo = mix(albedo, under, chips * 0.85)
        metal = metal + (0.8 - metal) * chips
        roughness = roughness + (0.45 - roughness) * chips
    elif cond["state"] == "dirty":
        grime = smoothstep(-0.5, 1.2, sample_noise(where, 0.22, 1.8, 3) + cond["amount"] * 0.6)
        albedo = mix(albedo, linear((0.16, 0.13, 0.10)), grime * 0.75)
        metal = metal * (1 - 0.8 * grime)
        roughness = roughness + (0.7 - roughness) * grime * 0.7
    return np.clip(albedo, 0, 1), metal, np.clip(roughness, 0.05, 1)


def table(points, cond):
    """Colour (linear) of the table at plane points [N, 2], and its gloss in [0, 1]."""
    spin = math.radians(cond["table_turn"])
    turn = np.array([[math.cos(spin), -math.sin(spin)], [math.sin(spin), math.cos(spin)]])
    where = points @ turn.astype(np.float32) + np.array(cond["offset"][:2], np.float32) * 3
    x, y = where[:, 0], where[:, 1]
    kind, shade = cond["background"], cond["shade"]
    soft = sample_noise(where, 0.10, 1.7)
    fine = sample_noise(where, 0.35, 0.7, 1)
    gloss = 0.0
    if kind == "wood":
        grain = sample_noise(where * np.array([0.12, 1.3], np.float32), 0.35, 1.3, 2)
        light = (0.78, 0.60, 0.40) if shade > 0.5 else (0.58, 0.39, 0.23)
        dark = (0.55, 0.36, 0.19) if shade > 0.5 else (0.36, 0.21, 0.11)
        colour = mix(linear(light), linear(dark), smoothstep(-1.5, 1.8, grain))
        seam = np.abs((y / 1.5) % 1 - 0.5) > 0.485
        colour[seam] *= 0.45
        gloss = 0.15
    elif kind == "mat":
        colour = np.tile(linear((0.13, 0.42, 0.29)), (len(where), 1)) * (1 + 0.05 * soft)[:, None]
        lines = np.minimum(np.abs((x * 1.4) % 1 - 0.5), np.abs((y * 1.4) % 1 - 0.5)) < 0.022
        colour[lines] = linear((0.45, 0.66, 0.52))
    elif kind == "concrete":
        grey = 0.42 + 0.22 * shade
        colour = np.tile(linear((grey, grey, grey * 0.98)), (len(where), 1))
        colour *= (1 + 0.13 * soft + 0.09 * fine)[:, None]
    elif kind == "paper":
        colour = np.tile(linear((0.92, 0.92, 0.90)), (len(where), 1))
    elif kind == "cloth":
        base = (0.10, 0.10, 0.12) if shade > 0.5 else (0.10, 0.12, 0.22)
        weave = np.sin(x * 34) * np.sin(y * 34)
        colour = np.tile(linear(base), (len(where), 1))
        colour *= (1 + 0.35 * weave + 0.15 * soft)[:, None]
    elif kind == "tray":
        colour = np.tile(linear((0.12, 0.33, 0.66)), (len(where), 1))
        colour *= (1 + 0.16 * np.sign(np.sin(x * 5.2)) * (np.abs(np.sin(x * 5.2)) < 0.45))[:, None]
        gloss = 0.3
    elif kind == "sand":
        colour = np.tile(linear((0.80, 0.70, 0.53)), (len(where), 1))
        colour *= (1 + 0.06 * soft + 0.10 * fine)[:, None]
    elif kind == "tiles":
        colour = np.tile(linear((0.66, 0.36, 0.26)), (len(where), 1))
        tile = np.sin(np.floor(x * 0.9) * 12.9 + np.floor(y * 0.9) * 78.2) * 0.1
        colour *= (1 + tile + 0.05 * soft)[:, None]
        grout = np.maximum(np.abs((x * 0.9) % 1 - 0.5), np.abs((y * 0.9) % 1 - 0.5)) > 0.465
        colour[grout] = linear((0.72, 0.70, 0.66))
        gloss = 0.2
    elif kind == "plate":
        grain = sample_noise(where * np.array([0.05, 1.0], np.float32), 0.6, 0.8, 2)
        grey = 0.50 + 0.14 * shade
        colour = np.tile(linear((grey, grey * 1.01, grey * 1.04)), (len(where), 1))
        colour *= (1 + 0.10 * grain)[:, None]
        gloss = 0.5
    elif kind == "cardboard":
        ribs = np.sin(y * 16)
        colour = np.tile(linear((0.68, 0.52, 0.35)), (len(where), 1))
        colour *= (1 + 0.05 * ribs + 0.05 * soft)[:, None]
    else:
        raise ValueError(f"background {kind!r}: expected one of {', '.join(BACKGROUNDS)}")
    return np.clip(colour, 0, 1) * cond["table_light"], gloss


def surroundings(directions, rough, cond, ground):
    """What a mirror sees along `directions`: a room with soft boxes, blurred by `rough`."""
    z = directions[:, 2]
    sky = 0.50 + 0.35 * np.exp(-np.abs(z) * 3.0)
    sky = np.where(z < 0, 0.55 * ground, sky)
    spread = 0.06 + 0.45 * rough
    for azimuth, elevation, width, strength in cond["boxes"]:
        cosine = directions @ direction(azimuth, elevation)
        edge = math.cos(math.radians(width))
        sky = sky + strength * smoothstep(edge - spread, edge + spread * 0.3, cosine)
    # A dark curtain on one side gives metal the contrast that makes it read as metal.
    dark = directions @ direction(cond["light"][0] + 150, 15)
    return sky * (1 - 0.6 * smoothstep(0.55 - rough * 0.4, 0.9, dark))


DOME = np.stack(
    [
        direction(a, e)
        for a, e in [
            (0, 72),
            (45, 24),
            (90, 52),
            (135, 18),
            (180, 68),
            (225, 24),
            (270, 48),
            (315, 16),
        ]
    ]
)


def render(part, cond, size, samples=2):
    """(image uint8 [size, size, 3], mask bool [size, size]) of one part under one condition."""
    pose = rotation("z", cond["yaw"]) @ rotation("x", cond["pose"][0])
    pose = pose @ rotation("y", cond["pose"][1])
    world = part.vertices @ pose.T
    floor = float(world[:, 2].min())

    # The camera looks from elevation `tilt`; frame the part's bounding box, then shift it a little.
    back = direction(0, cond["tilt"])
    right = np.array([0, 1, 0], np.float32)
    up = np.cross(back, right)
    roll = math.radians(cond["roll"])
    right, up = (
        math.cos(roll) * right + math.sin(roll) * up,
        math.cos(roll) * up - math.sin(roll) * right,
    )
    eye = back * 6.0
    away = eye - world
    depth = away @ back
    px, py = -(away @ right) / depth, -(away @ up) / depth
    half = max(np.ptp(px), np.ptp(py)) / 2 / cond["fill"]
    middle = (
        (px.max() + px.min()) / 2 + cond["shift"][0] * half,
        (py.max() + py.min()) / 2 + cond["shift"][1] * half,
    )
    n = size * samples
    ticks = ((np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1) * half
    gx, gy = np.meshgrid(middle[0] + ticks, middle[1] - ticks)
    rays = -back + gx.reshape(-1, 1) * right + gy.reshape(-1, 1) * up
    rays = (rays / np.sqrt(dot(rays, rays))[:, None]).astype(np.float32)

    # Rays are cast in the part's own frame, so that one embree scene serves every pose.
    local = np.ascontiguousarray(rays @ pose)
    origin = np.ascontiguousarray(np.broadcast_to(eye @ pose, local.shape), dtype=np.float32)
    face, distance, normal = part.hit(origin, local)
    mask = face >= 0
    ground_distance = (floor - eye[2]) / np.minimum(rays[:, 2], -1e-3)
    distance = np.where(mask, distance, ground_distance).astype(np.float32)
    points = eye + rays * distance[:, None]
    normals = np.where(mask[:, None], normal @ pose.T, np.array([0, 0, 1], np.float32))
    facing = dot(normals, rays) > 0
    normals[facing] *= -1

    # Each of the samples x samples rays of a pixel takes other lamp and dome directions: the
    # average over a pixel is soft and free of noise.
    cell = (np.arange(n) % samples)[:, None] * samples + (np.arange(n) % samples)[None]
    cell = cell.reshape(-1)
    lamp = direction(*cond["light"][:2])
    side = np.cross(lamp, [0, 0, 1.0])
    side = (side / max(np.linalg.norm(side), 1e-6)).astype(np.float32)
    top = np.cross(side, lamp).astype(np.float32)
    start = (points + normals * 0.006) @ pose
    start = np.ascontiguousarray(start, dtype=np.float32)
    angle = 2 * math.pi * (cell + 0.25) / samples**2
    jitter = cond["softness"] * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * top)
    towards = np.ascontiguousarray((lamp + jitter) @ pose, dtype=np.float32)
    lit = 1 - part.blocked(start, towards)
    lit *= np.maximum(normals @ lamp, 0)
    sky = np.zeros(len(points), np.float32)
    weight = np.zeros(len(points), np.float32)
    for k in range(2):
        ray = DOME[(cell * 2 + k) % len(DOME)]
        cosine = np.maximum(dot(normals, ray), 0) + 0.05
        free = 1 - part.blocked(start, np.ascontiguousarray(ray @ pose, dtype=np.float32))
        sky += cosine * free
        weight += cosine
    # The directions of a ray depend on its place in the pixel. Division by the mean weight, not by
    # the ray's weight, keeps the dome's cosine law in the average of the pixel.
    sky = sky / 0.75
    openness = np.clip(sky / np.maximum(weight / 0.75, 1e-3), 0, 1)

    lamp_colour = np.array(cond["lamp_colour"], np.float32) * cond["light"][2]
    sky_colour = np.array(cond["sky_colour"], np.float32) * cond["ambient"]
    colour = np.zeros((len(points), 3), np.float32)
    ground_colour, gloss = table(points[~mask][:, :2], cond)
    bounce = float(ground_colour.mean()) if len(ground_colour) else 0.3
    shade = lit[~mask][:, None] * lamp_colour + sky[~mask][:, None] * sky_colour
    ground = ground_colour * shade
    if gloss:
        mirror = rays[~mask].copy()
        mirror[:, 2] *= -1
        shine = surroundings(mirror, np.float32(0.55), cond, bounce) - 0.5
        ground = ground + 0.12 * gloss * np.maximum(shine, 0)[:, None] * openness[~mask][:, None]
    colour[~mask] = ground

    seen, look = normals[mask], rays[mask]
    albedo, metal, rough = surface((points[mask] @ pose).astype(np.float32), cond)
    facing = dot(seen, look)
    reflected = look - 2 * facing[:, None] * seen
    fresnel = (1 - np.clip(-facing, 0, 1)) ** 5
    base = mix(np.full_like(albedo, 0.04), albedo, metal)
    mirror = base + (1 - base) * (fresnel * (1 - rough) * 0.7)[:, None]
    room = surroundings(reflected, rough, cond, bounce) * (0.35 + 0.65 * openness[mask])
    half_way = lamp - look
    half_way /= np.sqrt(dot(half_way, half_way))[:, None]
    power = 2 / np.maximum(rough, 0.12) ** 2.6
    glint = np.maximum(dot(half_way, seen), 0) ** power * (power + 8) / 40
    glint = np.minimum(glint, 6) * (lit[mask] > 0)
    under = np.clip(0.5 - 0.5 * seen[:, 2], 0, 1) * bounce * 0.7
    diffuse = lit[mask][:, None] * lamp_colour + sky[mask][:, None] * sky_colour
    diffuse = diffuse + under[:, None] * sky_colour
    part_colour = albedo * (1 - 0.9 * metal)[:, None] * diffuse
    glow = room[:, None] * (0.45 * lamp_colour + 0.75 * sky_colour)
    part_colour += mirror * (glow + (glint * 0.5)[:, None] * lamp_colour)
    colour[mask] = part_colour

    colour *= cond["exposure"]
    colour = np.where(colour > 0.8, 0.8 + 0.2 * np.tanh((colour - 0.8) / 0.35), colour)
    shape = (size, samples, size, samples)
    image = colour.reshape(*shape, 3).mean((1, 3))
    image = np.clip(image, 0, 1) ** (1 / 2.2)
    cover = mask.reshape(shape).mean((1, 3)) >= 0.5
    return (image * 255 + 0.5).astype(np.uint8), cover


def pick(rng, items):
    return items[int(rng.integers(len(items)))]


# The keys of a condition that an edit may change, and the keys of the view.
SURFACE = ("material", "state", "amount")
TABLE = ("background", "table_light", "table_turn", "offset", "shade")
LIGHT = (
    "light", "warmth", "hard", "softness", "ambient", "lamp_colour", "sky_colour", "boxes",
    "exposure", "tint",
)  # fmt: skip
VIEW = ("pose", "yaw", "tilt", "roll", "fill", "shift")


def draw_condition(rng, poses, materials=None, backgrounds=None, studio=False):
    """One condition; `studio` is the narrow world of training photos, else the full range.

    The studio has one kind of light (neutral, from the upper left) and views from about 50-65
    degrees; the full range has lamps of all colours and directions and views from nearly level to
    nearly vertical. `materials` and `backgrounds` restrict those two in either case.
    """
    uniform = lambda low, high: float(rng.uniform(low, high))  # noqa: E731
    material = pick(rng, materials or list(MATERIALS))
    background = pick(rng, backgrounds or list(BACKGROUNDS))
    warmth = 0.0 if studio else pick(rng, [0.0, 0.0, uniform(0.4, 1), uniform(-1, -0.4)])
    hard = (not studio) and rng.random() < 0.3
    light = [uniform(200, 240), uniform(50, 60), 0.85]
    if not studio:
        light = [uniform(0, 360), uniform(28, 75), uniform(0.55, 1.1)]
    state = "clean" if studio else pick(rng, ["clean"] * 3 + ["worn", "dirty"])
    box_turn = 0.0 if studio else uniform(0, 360)
    return {
        "material": material,
        "background": background,
        "state": state,
        "amount": uniform(0, 1),
        "pose": list(pick(rng, poses[:1] + poses[-2:-1] if studio else poses)),
        "yaw": uniform(0, 360),
        "tilt": uniform(48, 64) if studio else uniform(22, 86),
        "roll": 0.0 if studio else uniform(-12, 12),
        "fill": uniform(0.74, 0.82) if studio else uniform(0.66, 0.88),
        "shift": [uniform(-0.05, 0.05), uniform(-0.05, 0.05)],
        "light": light,
        "warmth": warmth,
        "hard": bool(hard),
        "softness": 0.03 if hard else 0.16,
        "ambient": 0.22 if hard else (0.45 if studio else uniform(0.32, 0.6)),
        "lamp_colour": [1 + 0.22 * warmth, 1.0, 1 - 0.34 * warmth],
        "sky_colour": [1 + 0.10 * warmth, 1.0, 1 - 0.12 * warmth],
        "boxes": [
            [light[0], light[1], 16, 1.6],
            [box_turn + 100, 25, 22, 0.7],
            [box_turn + 245, 50, 14, 0.9],
        ],
        "exposure": 1.0 if studio else uniform(0.8, 1.15),
        "tint": [1.0, 1.0, 1.0] if studio else [uniform(0.85, 1.12) for _ in range(3)],
        "table_light": 1.0 if studio else uniform(0.8, 1.12),
        "table_turn": 0.0 if studio else uniform(0, 360),
        "shade": 1.0 if studio else uniform(0, 1),
        "offset": [uniform(0, 5) for _ in range(3)],
    }


def caption(rng, name, cond):
    """A caption of a render; some name only the part, some also its surface, table and light."""
    article = lambda words: ("an " if words[0] in "aeiou" else "a ") + words  # noqa: E731
    look = pick(rng, MATERIALS[cond["material"]][0])
    state = pick(rng, STATES[cond["state"]])
    place = pick(rng, BACKGROUNDS[cond["background"]])
    extras = []
    if cond["tilt"] > 68:
        extras.append("from above")
    elif cond["tilt"] < 36:
        extras.append("from the side")
    if cond["hard"]:
        extras.append("in hard light")
    if cond["warmth"] > 0:
        extras.append("in warm light")
    elif cond["warmth"] < 0:
        extras.append("in cold light")
    start = pick(rng, ["a photo of", "a photo of", "a photo of", "a close-up of", "a picture of"])
    subject = " ".join(w for w in (state if rng.random() < 0.7 else "", look, name) if w)
    draw = rng.random()
    if draw < 0.16:
        return f"{start} {article(name)}"
    if draw < 0.26:
        return f"{start} {article(subject)}"
    if draw < 0.34:
        return f"{start} {article(name)} {place}"
    words = f"{start} {article(subject)} {place}"
    if extras and rng.random() < 0.6:
        words += ", " + pick(rng, extras)
    return words
