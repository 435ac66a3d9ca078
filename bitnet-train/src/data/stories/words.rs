//! The words the stories are made of: people, things, places, weather and feelings.
//!
//! Lists only. A change to any of them changes the stories, so
//! [`super::GENERATOR_VERSION`] goes up with it.

/// A name and the pronouns that go with it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub name: &'static str,
    pub female: bool,
}

/// What adjectives a thing can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Toy,
    Tool,
    Food,
    Cloth,
    Small,
    Box,
}

/// A thing that people carry: its noun, and what a person does with it, as `wants to ...` and `... (past)`.
#[derive(Debug)]
pub(super) struct Noun {
    pub noun: &'static str,
    pub class: Class,
    pub want: &'static str,
    pub did: &'static str,
}

/// A place: its noun and preposition, what people do there (infinitive and past), and three spots in it.
#[derive(Debug)]
pub(super) struct PlaceWords {
    pub noun: &'static str,
    pub at: &'static str,
    pub act: &'static str,
    pub acted: &'static str,
    pub spots: [&'static str; 3],
}

/// One kind of weather: how a story may open on it and what may be said about it later.
#[derive(Debug)]
pub(super) struct Weather {
    pub adjective: &'static str,
    pub openings: [&'static str; 2],
    pub details: [&'static str; 2],
}

const fn she(name: &'static str) -> Name {
    Name { name, female: true }
}

const fn he(name: &'static str) -> Name {
    Name { name, female: false }
}

const fn noun(noun: &'static str, class: Class, want: &'static str, did: &'static str) -> Noun {
    Noun { noun, class, want, did }
}

const fn place(
    noun: &'static str,
    at: &'static str,
    act: &'static str,
    acted: &'static str,
    spots: [&'static str; 3],
) -> PlaceWords {
    PlaceWords { noun, at, act, acted, spots }
}

/// The adjectives that fit a class; the colours come first, [`COLORS`] of them.
pub(super) fn adjectives(class: Class) -> &'static [&'static str] {
    match class {
        Class::Toy => &[
            "red", "blue", "green", "yellow", "orange", "purple", "white", "brown", "new", "old", "little", "wooden",
            "big",
        ],
        Class::Tool => &[
            "red", "blue", "green", "yellow", "black", "white", "gray", "brown", "old", "new", "strong", "heavy",
            "long",
        ],
        Class::Food => &[
            "red", "green", "yellow", "golden", "brown", "white", "pink", "orange", "big", "little", "fresh", "sweet",
            "round",
        ],
        Class::Cloth => &[
            "red", "blue", "green", "yellow", "gray", "purple", "white", "pink", "soft", "warm", "old", "new", "thick",
        ],
        Class::Small => &[
            "silver", "golden", "blue", "green", "white", "black", "red", "purple", "tiny", "old", "shiny", "pretty",
            "round",
        ],
        Class::Box => &[
            "red", "blue", "green", "yellow", "brown", "gray", "black", "orange", "big", "old", "new", "strong",
            "round",
        ],
    }
}

/// How many of each class's adjectives, from the front, are colours.
pub(super) const COLORS: usize = 8;

#[rustfmt::skip]
pub(super) const NAMES: &[Name] = &[
    she("Anna"), she("Ella"), she("Lucy"), she("Mia"), she("Emma"), she("Sara"), she("Nora"), she("Clara"),
    she("Julia"), she("Maria"), she("Alice"), she("Ruth"), she("Eva"), she("Zoe"), she("Kate"), she("Jane"),
    she("Amy"), she("Molly"), she("Rosa"), she("Leah"), she("Nina"), she("Ida"), she("Helen"), she("Sofia"),
    she("Tara"), she("Maya"), she("Beth"), she("Laura"), she("Martha"), she("Olga"),
    he("Tom"), he("Ben"), he("Sam"), he("Max"), he("Leo"), he("Jack"), he("Adam"), he("Paul"),
    he("Peter"), he("David"), he("Henry"), he("Oscar"), he("Noah"), he("Finn"), he("Luke"), he("Simon"),
    he("Carl"), he("Omar"), he("Ivan"), he("Hugo"), he("Eric"), he("Felix"), he("Martin"), he("Oliver"),
    he("George"), he("Daniel"), he("Victor"), he("Arthur"), he("Walter"), he("Jacob"),
];

#[rustfmt::skip]
pub(super) const NOUNS: &[Noun] = &[
    noun("ball", Class::Toy, "play catch", "played catch"),
    noun("kite", Class::Toy, "have fun in the wind", "had fun in the wind"),
    noun("doll", Class::Toy, "play house", "played house"),
    noun("drum", Class::Toy, "make some noise", "made some noise"),
    noun("toy boat", Class::Toy, "play in the water", "played in the water"),
    noun("toy car", Class::Toy, "have a race", "had a race"),
    noun("toy train", Class::Toy, "build a railway", "built a railway"),
    noun("puzzle", Class::Toy, "make a picture", "made a picture"),
    noun("teddy bear", Class::Toy, "play family", "played family"),
    noun("balloon", Class::Toy, "have a party", "had a party"),
    noun("jump rope", Class::Toy, "jump a hundred times", "jumped a hundred times"),
    noun("sled", Class::Toy, "slide down a hill", "slid down a hill"),
    noun("flute", Class::Toy, "play a song", "played a song"),
    noun("guitar", Class::Toy, "learn a new song", "learned a new song"),
    noun("trumpet", Class::Toy, "play loud music", "played loud music"),
    noun("robot", Class::Toy, "see how machines work", "saw how machines work"),
    noun("puppet", Class::Toy, "put on a show", "put on a show"),
    noun("mask", Class::Toy, "look like a lion", "looked like a lion"),
    noun("shovel", Class::Tool, "dig a hole", "dug a hole"),
    noun("hammer", Class::Tool, "fix a chair", "fixed a chair"),
    noun("rope", Class::Tool, "tie up a boat", "tied up a boat"),
    noun("saw", Class::Tool, "cut some wood", "cut some wood"),
    noun("lamp", Class::Tool, "see in the dark", "looked around in the dark"),
    noun("broom", Class::Tool, "clean the floor", "cleaned the floor"),
    noun("rake", Class::Tool, "clear the leaves", "cleared the leaves"),
    noun("ladder", Class::Tool, "reach a high branch", "reached a high branch"),
    noun("brush", Class::Tool, "paint a fence", "painted a fence"),
    noun("spoon", Class::Tool, "stir the soup", "stirred the soup"),
    noun("pan", Class::Tool, "cook some eggs", "cooked some eggs"),
    noun("kettle", Class::Tool, "make hot tea", "made hot tea"),
    noun("fishing net", Class::Tool, "catch a fish", "caught a fish"),
    noun("flashlight", Class::Tool, "look into a cave", "looked into a cave"),
    noun("camera", Class::Tool, "take a picture of a bird", "took a picture of a bird"),
    noun("telescope", Class::Tool, "look at the far hills", "looked at the far hills"),
    noun("watering can", Class::Tool, "water the flowers", "watered the flowers"),
    noun("pump", Class::Tool, "fix a flat tire", "fixed a flat tire"),
    noun("apple", Class::Food, "bake a pie", "baked a pie"),
    noun("pear", Class::Food, "make some jam", "made some jam"),
    noun("cake", Class::Food, "set a nice table", "set a nice table"),
    noun("pumpkin", Class::Food, "make a soup", "made a soup"),
    noun("melon", Class::Food, "make a fruit salad", "made a fruit salad"),
    noun("onion", Class::Food, "cook a stew", "cooked a stew"),
    noun("carrot", Class::Food, "meet a rabbit", "met a rabbit"),
    noun("bun", Class::Food, "have a picnic", "had a picnic"),
    noun("cookie", Class::Food, "enjoy a little treat", "enjoyed the smell of sugar"),
    noun("egg", Class::Food, "bake some bread", "baked some bread"),
    noun("hat", Class::Cloth, "keep the rain off", "kept the rain off"),
    noun("scarf", Class::Cloth, "keep warm", "kept warm"),
    noun("coat", Class::Cloth, "go out in the cold", "went out in the cold"),
    noun("blanket", Class::Cloth, "sit on the ground", "sat on the ground"),
    noun("sweater", Class::Cloth, "stay warm", "stayed warm"),
    noun("umbrella", Class::Cloth, "stay dry", "stayed dry"),
    noun("pillow", Class::Cloth, "take a nap", "took a nap"),
    noun("cap", Class::Cloth, "play on the team", "played on the team"),
    noun("apron", Class::Cloth, "help in the kitchen", "helped in the kitchen"),
    noun("flag", Class::Cloth, "lead a parade", "led a parade"),
    noun("key", Class::Small, "open a door", "opened a door"),
    noun("ring", Class::Small, "look nice", "looked nice"),
    noun("coin", Class::Small, "make a wish", "made a wish"),
    noun("shell", Class::Small, "hear the sea", "listened to the sea"),
    noun("bell", Class::Small, "call the dog", "called the dog"),
    noun("watch", Class::Small, "know the time", "looked at the time"),
    noun("whistle", Class::Small, "start a race", "started a race"),
    noun("pen", Class::Small, "write a poem", "wrote a poem"),
    noun("button", Class::Small, "mend a shirt", "mended a shirt"),
    noun("stone", Class::Small, "hold a door open", "held a door open"),
    noun("feather", Class::Small, "make a crown", "made a crown"),
    noun("marble", Class::Small, "play a game", "played a game"),
    noun("necklace", Class::Small, "dress up", "dressed up"),
    noun("magnet", Class::Small, "pick up some nails", "picked up some nails"),
    noun("candle", Class::Small, "light up a room", "lit up a room"),
    noun("mirror", Class::Small, "comb some hair", "smiled at the glass"),
    noun("book", Class::Cloth, "read a story", "read a story"),
    noun("map", Class::Tool, "find the way", "found the way"),
    noun("letter", Class::Small, "hear some news", "read the news"),
    noun("notebook", Class::Cloth, "draw some animals", "drew some animals"),
    noun("photo", Class::Small, "remember old friends", "thought of old friends"),
    noun("compass", Class::Small, "find the north", "found the north"),
    noun("medal", Class::Small, "feel like a winner", "felt like a winner"),
    noun("radio", Class::Tool, "listen to music", "listened to music"),
    noun("bag", Class::Box, "carry things", "carried some things"),
    noun("basket", Class::Box, "carry things", "carried some things"),
    noun("box", Class::Box, "keep things safe", "kept things safe"),
    noun("bucket", Class::Box, "carry things", "carried some things"),
    noun("backpack", Class::Box, "carry things", "carried some things"),
    noun("suitcase", Class::Box, "pack for a trip", "packed for a trip"),
];

#[rustfmt::skip]
pub(super) const PLACES: &[PlaceWords] = &[
    place("kitchen", "in", "cook lunch", "cooked lunch", ["under the table", "in the cupboard", "on the shelf"]),
    place("garden", "in", "pick some flowers", "picked some flowers", ["under the old tree", "behind the shed", "next to the roses"]),
    place("park", "in", "feed the ducks", "fed the ducks", ["under a bench", "behind the fountain", "next to the swings"]),
    place("library", "in", "look at the picture books", "looked at the picture books", ["on the desk", "behind the tall shelf", "under a chair"]),
    place("market", "at", "look at the fruit", "looked at the fruit", ["under the fruit stand", "behind a cart", "next to the flower stand"]),
    place("beach", "on", "build a sand castle", "built a sand castle", ["behind a rock", "under the pier", "next to the sand castle"]),
    place("school", "at", "write on the board", "wrote on the board", ["under a desk", "behind the door", "in the closet"]),
    place("barn", "in", "feed the horse", "fed the horse", ["under the hay", "behind the ladder", "next to the wagon"]),
    place("forest", "in", "listen to the birds", "listened to the birds", ["under a pine tree", "behind a big log", "in a hollow tree"]),
    place("hill", "on", "look at the clouds", "looked at the clouds", ["behind a bush", "under the oak tree", "next to the flat rock"]),
    place("river", "by", "throw stones into the water", "threw stones into the water", ["behind the reeds", "under the willow", "next to the old boat"]),
    place("lake", "by", "watch the swans", "watched the swans", ["under the dock", "behind the tall grass", "next to the canoe"]),
    place("station", "at", "wait for the train", "waited for the train", ["under the clock", "behind the ticket booth", "next to the stairs"]),
    place("bakery", "in", "smell the warm bread", "smelled the warm bread", ["behind the counter", "on the flour sacks", "next to the oven"]),
    place("attic", "in", "look through old trunks", "looked through old trunks", ["under a dusty sheet", "behind the trunk", "next to the little window"]),
    place("cellar", "in", "count the jars", "counted the jars", ["behind a barrel", "under the stairs", "on the lowest shelf"]),
    place("bedroom", "in", "make the bed", "made the bed", ["under the bed", "behind the curtain", "in the drawer"]),
    place("museum", "in", "look at the dinosaur bones", "looked at the dinosaur bones", ["behind a statue", "under the long bench", "next to the glass case"]),
    place("zoo", "at", "watch the monkeys", "watched the monkeys", ["behind the bird house", "under the sign", "next to the monkey cage"]),
    place("farm", "on", "feed the chickens", "fed the chickens", ["behind the hen house", "under the tractor", "next to the gate"]),
    place("meadow", "in", "chase butterflies", "chased butterflies", ["in the tall grass", "under the apple tree", "behind the stone wall"]),
    place("village square", "in", "listen to the band", "listened to the band", ["behind the statue", "under the stage", "next to the well"]),
    place("harbor", "at", "count the ships", "counted the ships", ["behind the crates", "under the old net", "next to the anchor"]),
    place("workshop", "in", "sand some wood", "sanded some wood", ["under the workbench", "behind the paint cans", "on the tool rack"]),
    place("theater", "in", "watch a play", "watched a play", ["under a seat", "behind the red curtain", "next to the piano"]),
    place("hospital", "at", "visit a neighbor", "visited a neighbor", ["under the front desk", "behind the plant", "on the window sill"]),
    place("post office", "at", "mail a card", "mailed a card", ["on the counter", "behind the mail bags", "under the scale"]),
    place("pond", "by", "look for frogs", "looked for frogs", ["behind the lilies", "under a leaf", "next to the wet rock"]),
    place("playground", "on", "ride the swing", "rode the swing", ["under the slide", "in the sand box", "behind the seesaw"]),
    place("orchard", "in", "climb a tree", "climbed a tree", ["under the cherry tree", "behind the fence", "next to the wheelbarrow"]),
    place("castle", "in", "climb the tower", "climbed the tower", ["behind the throne", "under the stone steps", "next to the suit of armor"]),
    place("cave", "in", "listen to the echo", "listened to the echo", ["behind a gray rock", "in a deep crack", "next to the little stream"]),
    place("bridge", "on", "wave at the boats", "waved at the boats", ["behind the stone post", "under the railing", "next to the lantern"]),
    place("cabin", "in", "make a fire", "made a fire", ["under the rug", "behind the stove", "in the wood pile"]),
    place("toy store", "in", "try the rocking horse", "tried the rocking horse", ["behind the doll house", "on the top shelf", "under the puzzle table"]),
    place("greenhouse", "in", "count the tomatoes", "counted the tomatoes", ["behind the tall fern", "under the long table", "in an empty pot"]),
    place("island", "on", "look for crabs", "looked for crabs", ["behind the lighthouse", "under a palm tree", "next to the driftwood"]),
    place("yard", "in", "sweep the steps", "swept the steps", ["behind the bicycle", "under the porch", "next to the mailbox"]),
    place("gym", "in", "run some laps", "ran some laps", ["under the mats", "behind the lockers", "next to the climbing wall"]),
    place("classroom", "in", "draw a picture", "drew a picture", ["in the teacher's desk", "behind the globe", "under the coat hooks"]),
];

#[rustfmt::skip]
pub(super) const WEATHERS: &[Weather] = &[
    Weather { adjective: "sunny", openings: ["The sun was shining", "The sky was blue and clear"], details: ["The sun felt warm.", "There was not a cloud in the sky."] },
    Weather { adjective: "rainy", openings: ["It was raining softly", "Rain was falling on the roofs"], details: ["The rain kept falling.", "There were puddles everywhere."] },
    Weather { adjective: "windy", openings: ["The wind was blowing hard", "The wind was shaking the trees"], details: ["The wind blew and blew.", "Leaves were flying through the air."] },
    Weather { adjective: "cold", openings: ["The air was cold and clear", "There was ice on the windows"], details: ["It was very cold outside.", "The cold air smelled like snow."] },
    Weather { adjective: "warm", openings: ["The air was warm and still", "Bees were humming in the warm air"], details: ["It was a warm day for a walk.", "The air smelled like flowers."] },
    Weather { adjective: "foggy", openings: ["Fog was covering the town", "The fog was thick and gray"], details: ["The fog made everything quiet.", "It was hard to see far in the fog."] },
    Weather { adjective: "snowy", openings: ["Snow was falling on the town", "The streets were white with snow"], details: ["The snow was deep and soft.", "The snow made the world very quiet."] },
    Weather { adjective: "cloudy", openings: ["Big clouds were moving over the town", "The sky was full of gray clouds"], details: ["The clouds moved slowly.", "The sun stayed behind the clouds."] },
];

pub(super) const TIMES: &[&str] = &["morning", "afternoon", "evening", "day"];

/// What a person may be introduced as.
pub(super) const ROLES: &[&str] = &[
    "baker",
    "farmer",
    "teacher",
    "painter",
    "doctor",
    "fisher",
    "gardener",
    "student",
    "singer",
    "tailor",
    "carpenter",
    "nurse",
    "pilot",
    "writer",
    "clockmaker",
    "shepherd",
];

/// Words for what a person is like; some need `an`.
pub(super) const TRAITS: &[&str] = &[
    "kind", "young", "old", "clever", "quiet", "cheerful", "brave", "friendly", "honest", "gentle", "curious",
    "patient", "busy", "eager", "polite", "funny",
];
