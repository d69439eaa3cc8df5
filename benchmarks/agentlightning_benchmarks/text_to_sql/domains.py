"""What the generated databases are about. Train and test share no table, no column of their own, and no text value.

A table is `plural singular | column: kind | ...`. The first column names a row, and no two rows share it. A kind is a range of numbers
(`3-90`), a list of texts (`red, green`), or `word` or `person`, a made-up name. Tables of a domain are a chain: each row of a table belongs
to one row of the table above it.
"""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "test"]

DOMAINS: dict[Split, dict[str, list[str]]] = {
    "train": {
        "school": [
            "teachers teacher | name: person | subject: Maths, Physics, Music, Latin | age: 25-64 | salary: 2000-6000",
            "courses course | title: word | room: North, South, East | hours: 2-40 | seats: 8-90",
            "pupils pupil | name: person | grade: 1-12 | points: 10-99",
        ],
        "shop": [
            "shops shop | name: word | city: Oslo, Rome, Bonn, Lyon | opened: 1950-2020 | staff: 3-80",
            "products product | name: word | color: red, blue, green, black | price: 5-900 | stock: 1-400",
        ],
        "zoo": [
            "zoos zoo | name: word | country: Chile, Kenya, Norway | area: 10-500 | visitors: 1000-90000",
            "animals animal | name: word | species: lion, otter, zebra, owl | weight: 2-900 | age: 1-40",
        ],
        "hospital": [
            "doctors doctor | name: person | field: surgery, dental, eyes | experience: 1-40",
            "patients patient | name: person | disease: flu, asthma, cold, fever | age: 1-95 | days: 1-60",
        ],
        "library": [
            "authors author | name: person | nation: French, Polish, Irish, Greek | born: 1800-1990",
            "books book | title: word | genre: novel, poems, drama | pages: 80-900 | copies: 1-60",
        ],
        "airline": [
            "airports airport | name: word | state: Texas, Ohio, Utah | gates: 3-90",
            "flights flight | number: word | status: late, landed, boarding | distance: 100-9000 | passengers: 20-400",
        ],
        "farm": [
            "farms farm | name: word | region: valley, coast, hills | hectares: 5-900",
            "crops crop | name: word | season: spring, summer, autumn | yield: 10-800 | cost: 20-700",
        ],
        "music": [
            "singers singer | name: person | style: rock, jazz, folk, opera | awards: 0-40 | age: 18-80",
            "songs song | title: word | language: English, German, Spanish | length: 90-600 | sales: 100-9000",
        ],
        "museum": [
            "museums museum | name: word | kind: art, science, history | founded: 1700-2000",
            "paintings painting | title: word | technique: oil, ink, chalk | width: 20-400 | value: 1000-90000",
        ],
        "company": [
            "departments department | name: word | floor: 1-30 | budget: 1000-90000",
            "employees employee | name: person | job: clerk, lawyer, driver, cook | wage: 900-9000 | age: 18-66",
            "projects project | title: word | state: open, closed, planned | weeks: 1-99",
        ],
        "hotel": [
            "hotels hotel | name: word | town: Nice, Bath, Graz, Pisa | stars: 1-5 | beds: 20-700",
            "guests guest | name: person | meal: breakfast, dinner, none | nights: 1-30 | bill: 50-5000",
        ],
        "sports": [
            "teams team | name: word | league: first, second, third | wins: 0-60 | fans: 500-90000",
            "players player | name: person | position: goalkeeper, defender, forward | goals: 0-70 | height: 150-210",
        ],
        "cinema": [
            "cinemas cinema | name: word | district: center, harbor, west | screens: 1-20",
            "films film | title: word | mood: comedy, horror, western | minutes: 60-240 | tickets: 10-9000",
        ],
        "fleet": [
            "harbors harbor | name: word | sea: Baltic, Adriatic, Aegean | depth: 5-60",
            "ships ship | name: word | cargo: coal, grain, steel | tons: 100-9000 | crew: 3-90",
        ],
        "bank": [
            "branches branch | name: word | street: Main, Park, Mill | clients: 50-9000",
            "accounts account | code: word | currency: euro, dollar, yen | balance: 10-90000 | year: 1990-2024",
        ],
        "garden": [
            "gardens garden | name: word | style: formal, wild, herbal | size: 10-900",
            "plants plant | name: word | bloom: white, pink, yellow | height: 5-400 | petals: 3-50",
        ],
        "race": [
            "circuits circuit | name: word | surface: gravel, asphalt, sand | laps: 5-90",
            "drivers driver | name: person | tyre: soft, medium, hard | speed: 90-390 | starts: 1-300",
        ],
        "club": [
            "clubs club | name: word | topic: chess, dance, sailing | fee: 5-300 | founded: 1880-2020",
            "members member | name: person | role: trainer, guest, captain | visits: 1-300 | age: 12-80",
        ],
        "railway": [
            "lines line | name: word | type: local, express, freight | kilometers: 10-900",
            "stations station | name: word | zone: inner, outer, border | platforms: 1-30 | elevation: 1-2000",
        ],
        "bakery": [
            "bakers baker | name: person | shift: morning, noon, night | years: 1-40",
            "cakes cake | name: word | flavor: lemon, cherry, nut, plum | calories: 90-900 | price: 2-60",
        ],
    },
    "test": {
        "observatory": [
            "observatories observatory | name: word | continent: Asia, Europe, Africa | altitude: 100-5000",
            "telescopes telescope | name: word | mirror: glass, beryllium, quartz | diameter: 10-900 | images: 100-9000",
        ],
        "theater": [
            "theaters theater | name: word | quarter: Soho, Mitte, Montmartre | capacity: 50-3000",
            "actors actor | name: person | voice: bass, tenor, alto | roles: 1-90 | fame: 1-100",
        ],
        "mountain": [
            "ranges range | name: word | climate: arctic, alpine, desert | extent: 10-3000",
            "peaks peak | name: word | stone: granite, basalt, slate | summit: 900-8000 | ascents: 1-900",
            "huts hut | name: word | owner: crown, private, church | bunks: 4-99",
        ],
        "orchard": [
            "orchards orchard | name: word | soil: clay, loam, peat | acres: 2-300",
            "trees tree | label: word | fruit: apple, pear, quince | harvest: 5-400 | girth: 10-200",
        ],
        "court": [
            "judges judge | name: person | court: civil, criminal, labor | cases: 5-900",
            "trials trial | title: word | verdict: guilty, acquitted, dropped | hearings: 1-60 | fine: 100-9000",
        ],
        "laboratory": [
            "laboratories laboratory | name: word | safety: low, moderate, strict | funding: 1000-90000",
            "samples sample | tag: word | substance: iodine, zinc, neon | mass: 1-500 | purity: 50-99",
        ],
        "market": [
            "vendors vendor | name: person | square: Rynek, Plaza, Forum | rent: 50-2000",
            "stalls stall | sign: word | goods: cheese, honey, cloth | turnover: 100-9000 | stools: 1-30",
        ],
        "island": [
            "islands island | name: word | ocean: Pacific, Atlantic, Indian | population: 50-90000",
            "beaches beach | name: word | flag: purple, orange, gray | meters: 40-5000 | umbrellas: 5-600",
        ],
        "studio": [
            "studios studio | name: word | province: Bavaria, Tuscany, Navarre | rooms: 2-60",
            "games game | title: word | platform: console, mobile, arcade | levels: 3-200 | downloads: 100-90000",
            "testers tester | name: person | rank: junior, senior, chief | bugs: 1-500",
        ],
        "brewery": [
            "breweries brewery | name: word | river: Elbe, Loire, Ebro | tanks: 2-80",
            "beers beer | name: word | taste: bitter, mild, smoky | strength: 1-12 | bottles: 100-9000",
        ],
    },
}

SYLLABLES: dict[Split, list[str]] = {
    "train": ["ba", "do", "ka", "li", "mo", "ra", "su", "te", "vi", "no", "pe", "gu"],
    "test": ["zu", "fa", "ho", "je", "ny", "wa", "xo", "qui", "sha", "bri", "cle", "dru"],
}
FIRST: dict[Split, list[str]] = {
    "train": ["Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Kevin", "Laura", "Mark"],
    "test": ["Alice", "Bruno", "Diana", "Felix", "Hannah", "Igor", "Maria", "Peter", "Sofia", "Tom"],
}
LAST: dict[Split, list[str]] = {
    "train": ["Berg", "Cole", "Dean", "Fox", "Hall", "King", "Lane", "Moss", "Reed", "Stone"],
    "test": ["Adler", "Blake", "Crane", "Frost", "Grant", "Hardy", "Lowe", "Shaw"],
}
