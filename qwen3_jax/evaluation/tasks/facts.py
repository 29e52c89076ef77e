"""Well-known facts, from which questions with true and with false premises are made."""

CAPITALS = (
    ("France", "Paris"), ("Japan", "Tokyo"), ("Italy", "Rome"), ("Egypt", "Cairo"), ("Kenya", "Nairobi"), ("Peru", "Lima"),
    ("Norway", "Oslo"), ("Greece", "Athens"), ("Cuba", "Havana"), ("Portugal", "Lisbon"), ("Poland", "Warsaw"),
    ("Austria", "Vienna"), ("Thailand", "Bangkok"), ("Ireland", "Dublin"), ("Hungary", "Budapest"), ("Finland", "Helsinki"),
)  # fmt: skip
AUTHORS = (
    ("Hamlet", "William Shakespeare"), ("Pride and Prejudice", "Jane Austen"), ("War and Peace", "Leo Tolstoy"),
    ("Don Quixote", "Miguel de Cervantes"), ("Moby-Dick", "Herman Melville"), ("Faust", "Johann Wolfgang von Goethe"),
    ("The Divine Comedy", "Dante Alighieri"), ("Crime and Punishment", "Fyodor Dostoevsky"),
    ("Oliver Twist", "Charles Dickens"),
    ("Frankenstein", "Mary Shelley"), ("Dracula", "Bram Stoker"), ("The Hobbit", "J. R. R. Tolkien"),
    ("Animal Farm", "George Orwell"), ("The Metamorphosis", "Franz Kafka"), ("Les Misérables", "Victor Hugo"),
)  # fmt: skip
PEOPLE = (  # name, known for, born, died
    ("Albert Einstein", "physics", 1879, 1955), ("Marie Curie", "chemistry", 1867, 1934),
    ("Charles Darwin", "biology", 1809, 1882), ("Wolfgang Amadeus Mozart", "music", 1756, 1791),
    ("Ludwig van Beethoven", "music", 1770, 1827), ("Abraham Lincoln", "politics", 1809, 1865),
    ("Vincent van Gogh", "painting", 1853, 1890), ("Galileo Galilei", "astronomy", 1564, 1642),
    ("Johann Sebastian Bach", "music", 1685, 1750), ("Michael Faraday", "physics", 1791, 1867),
    ("Louis Pasteur", "biology", 1822, 1895), ("Leonardo da Vinci", "painting", 1452, 1519),
)  # fmt: skip
ELEMENTS = (  # name, symbol, atomic number
    ("hydrogen", "H", 1), ("carbon", "C", 6), ("oxygen", "O", 8), ("sodium", "Na", 11), ("iron", "Fe", 26),
    ("copper", "Cu", 29),
    ("silver", "Ag", 47), ("gold", "Au", 79), ("mercury", "Hg", 80), ("lead", "Pb", 82), ("uranium", "U", 92),
    ("helium", "He", 2),
)  # fmt: skip
CONTINENTS = (  # something, where it lies
    ("the river Nile", "Africa"), ("the river Amazon", "South America"), ("the river Danube", "Europe"),
    ("the river Ganges", "Asia"), ("Mount Everest", "Asia"), ("Mount Kilimanjaro", "Africa"), ("Mont Blanc", "Europe"),
    ("the river Mississippi", "North America"), ("Lake Victoria", "Africa"), ("the Gobi Desert", "Asia"),
    ("the Atacama Desert", "South America"), ("the Grand Canyon", "North America"),
)  # fmt: skip
