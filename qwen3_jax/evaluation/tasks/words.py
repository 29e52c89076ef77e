"""Common English words for generated texts: each is one token of Qwen's vocabulary, or nearly always."""

ADJECTIVES = (
    "old", "young", "small", "large", "quiet", "loud", "bright", "dark", "warm", "cold", "soft", "hard", "heavy",
    "light", "quick", "slow", "early", "late", "green", "blue", "red", "yellow", "white", "black", "brown", "gray",
    "golden", "silver", "wooden", "broken", "empty", "full", "open", "closed", "simple", "strange", "gentle", "rough",
    "smooth", "sharp", "round", "flat", "deep", "shallow", "narrow", "wide", "tall", "short", "thick", "thin", "clean",
    "dirty", "dry", "wet", "fresh", "sweet", "bitter", "calm", "wild", "proud", "brave", "honest", "clever", "patient",
    "careful", "lazy", "busy", "lonely", "happy", "sad", "kind", "rich", "poor", "rare", "common", "modern", "ancient",
    "local", "distant", "hidden", "secret",
)  # fmt: skip
NOUNS = (
    "river", "mountain", "forest", "garden", "bridge", "window", "door", "table", "chair", "lamp", "book", "letter",
    "paper", "pencil", "basket", "bottle", "candle", "mirror", "clock", "camera", "engine", "wheel", "hammer", "ladder",
    "blanket", "carpet", "pillow", "kettle", "spoon", "plate", "cup", "bowl", "knife", "fork", "bread", "butter",
    "cheese", "apple", "lemon", "orange", "cherry", "carrot", "onion", "potato", "tomato", "pepper", "salt", "sugar",
    "honey", "coffee", "tea", "milk", "water", "stone", "sand", "clay", "iron", "copper", "silk", "cotton", "wool",
    "leather", "glass", "coal", "oil", "rain", "snow", "wind", "storm", "cloud", "thunder", "shadow", "morning",
    "evening", "summer", "winter", "spring", "harbor", "island", "valley", "desert", "meadow", "lake", "ocean", "beach",
    "village", "city", "market", "street", "tower", "castle", "temple", "school", "library", "museum", "theater",
    "factory", "farm", "barn", "mill", "station", "train", "boat", "ship", "wagon", "horse", "sheep", "goat", "rabbit",
    "tiger", "lion", "eagle", "falcon", "raven", "swan",
)  # fmt: skip
VERBS = (
    "carried", "painted", "found", "repaired", "sold", "bought", "watched", "cleaned", "measured", "counted", "moved",
    "opened", "described", "remembered", "followed",
)  # fmt: skip
PEOPLE = (
    "teacher", "farmer", "doctor", "sailor", "painter", "baker", "miller", "student", "writer", "singer", "driver",
    "hunter", "soldier", "gardener", "merchant", "captain",
)  # fmt: skip
