"""Word lists of the generated documents. Data only; every word is plain ASCII.

No word stands in two lists of one sentence's slots, and SUBJECTS never occur in filler: so a subject
that a task asks for stands only where the task put it.
"""


def _words(text: str) -> list[str]:
    return text.split()


SUBJECTS = _words("""
acorn adder agate alder almond alpaca amber anchor antler anvil apricot arrow aspen atlas aurora
avocado axle badger bagel balsam bamboo banjo barley basil basin bat beacon beaver beetle bellows
birch biscuit bison blanket blender bluebell boat bonnet boulder bracelet bramble brass bream bridle
bronze broom buckle buffalo bugle bulb butter button cabbage cactus camel candle canoe canyon carrot
cashew castle catfish cedar cello chalk cherry chestnut chisel cider cinder citrus clam clarinet clay
clover cobalt cobra coconut comet compass condor copper coral cork cotton cougar coyote crab cradle
crane crater cricket crocus crow crystal cumin currant curtain cymbal cypress daisy dolphin domino
donkey dragon drill drum dune eagle easel ebony eel egret elk ember emerald emu engine falcon feather
fennel fern ferret fiddle fig finch flask flint flute fossil fountain fox frog funnel galaxy garlic
garnet gazelle gecko geyser ginger glacier glove goat goblet goose gopher granite grape grouse guitar
gull hammer hammock hamster harp harpoon hawk hazel heather hedgehog helmet hemlock heron herring
hickory holly honey hornet hound hyena ibis iceberg igloo indigo iris iron ivory ivy jackal jaguar
jasmine jasper jay jersey jewel juniper kayak kelp kettle kiln kite kiwi koala ladder lagoon lantern
larch lark laurel lavender lemon lemur lentil leopard lichen lilac lily lime linen lion lizard llama
lobster locket locust lotus lute lynx macaw magnet magpie mahogany mallet mango maple marble marigold
marlin marten mask meadow melon mercury meteor millet minnow mint mirror mitten mole monkey moose
mosaic moss moth mulberry mule mussel mustard myrtle nectar needle nettle newt nickel nutmeg oak oasis
oat oboe ocelot olive onion opal orange orbit orchid oriole osprey ostrich otter owl oyster paddle
panda panther papaya paprika parrot parsley peach peanut pear pebble pelican pencil penguin pepper
petal pheasant piano pigeon pike pillow pine pistachio planet platinum plum poppy porcupine prairie
prism pulley puma pumpkin python quail quartz quill quilt rabbit raccoon radish raft raven reef
reindeer ribbon rooster rose rosemary ruby saddle saffron sage salmon sandal sapphire scarf scorpion
sequoia sesame shark shovel shrimp silk silver skunk sled sloth snail sparrow spider spinach sponge
spruce squid squirrel stork sugar sulfur sumac sunflower swallow swan swift sycamore tamarind teak
teapot telescope thistle thunder thyme tiger timber tin toad topaz tornado tortoise toucan trout
trumpet tuba tulip tundra turban turkey turnip turquoise turtle umbrella vanilla velvet violet violin
viper volcano vulture waffle wagon walnut walrus wasp weasel whale wheat whistle willow wolf wombat
wren yak yarrow zebra zinc zinnia
""")

FIRST_NAMES = _words("""
Ada Agnes Albert Alice Anna Arthur Bruno Carla Cecil Clara Conrad Cora David Dora Edgar Edith Elias
Elsa Emil Erik Esther Eva Felix Flora Frank Georg Greta Hanna Harold Helen Henry Hugo Ida Irene Ivan
Jakob Jonas Julia Karl Kate Laura Leo Linda Louis Lucy Martha Max Mina Nadia Nora Olga Oscar Otto Paul
Petra Ralph Rita Robert Rosa Ruth Samuel Sara Simon Sofia Stella Theo Thomas Ursula Vera Victor Walter
Wilma
""")

LAST_NAMES = _words("""
Abbott Arden Barlow Becker Benson Blake Brandt Brooks Burton Carver Chapman Clarke Cole Cooper Dalton
Dawson Dixon Drake Ellis Farrell Fisher Fletcher Foster Fuller Garner Gibbs Graham Grant Hale Harper
Hayes Holt Hooper Hughes Jensen Keller Knight Lambert Larsen Lawson Lowe Mason Meyer Miller Moreno
Morris Nash Norton Olsen Palmer Parker Pearce Porter Quinn Reed Reyes Rowe Sawyer Schmidt Sharpe Silva
Slater Stokes Sutton Tanner Thorne Turner Vance Wagner Walsh Weaver Webb Winter Wright
""")

PLACES = _words("""
archive bakery barn brewery bridge cabin cannery chapel city clinic college cottage council court
dairy depot district dock factory farm ferry forest foundry garden garage gate hall harbor hospital
hotel house inn island kitchen laboratory library lighthouse market mill mine monastery museum office
orchard palace park pier port prison quarry railway refinery river road school shipyard shop shore
stable station street studio tavern theater tower town tunnel valley village warehouse well wharf
workshop
""")

THINGS = _words("""
agreement album apron ballot bill blueprint book bottle brick budget cabinet calendar camera card
carpet catalog chain chair chart chest clock coat coin contract crate cup decree desk diagram
document door drawing engraving envelope essay fence file flag folder fragment frame furnace gift
globe guide instrument invoice journal key label lamp ledger letter license list lock machine
manual map medal memo meter model motor mug net note notebook novel order package painting
pamphlet panel paper parcel permit petition photograph pipe plan plate poem portrait poster
proposal pump puzzle radio receipt recipe record register report rope rug ruler sack sail sample
scale schedule screen sculpture seal sensor sign stamp statue stool stove table telegram tent
ticket tool uniform valve vase vehicle wheel window wire
""")

ADJECTIVES = _words("""
bitter blank bold brief bright brittle broad broken calm careful cheap clean clear clever cold
common costly crooked crude curious damaged damp dark deep delicate detailed dim distant dry dull
dusty faded faint famous fine firm flat fragile fresh gentle genuine gray handsome harsh heavy
hidden hollow huge humble large late light local lonely loose loud massive minor modern modest
muddy narrow neat noisy plain polished poor private proper public quick quiet rare recent remote
rich rigid rough round rusty secret separate severe shallow sharp shiny short silent simple slow
small smooth soft solid spare special splendid stale steady steep stiff strange strict strong
sturdy sudden tall temporary thick thin tidy tiny torn typical vacant vague valuable vast vivid
warm weak wet wide wild wooden worn
""")

VERBS = _words("""
accepted adjusted admired altered approved arranged assembled borrowed bought brought built carried
changed checked chose cleaned collected compared completed copied corrected counted covered decorated
delivered described designed destroyed discovered discussed displayed divided donated drew dropped
emptied ended examined exchanged explained favored finished fixed followed forgot found framed gathered
guarded handled hid ignored improved inspected installed kept labeled lent lifted lost
loved managed marked measured mended mentioned missed moved needed noticed offered opened ordered owned
packed painted placed planned praised prepared presented printed produced protected published purchased
received recommended recovered rejected removed renewed rented repaired replaced requested restored
returned reviewed saved sealed searched selected sent shared showed signed sold sorted stored studied
tested took traced traded treated valued visited watched weighed wrapped
""")

TIMES = _words("""
afternoon autumn evening holiday midnight month morning night noon season spring summer week weekend
year
""")

GROUPS = _words("""
apprentices artists auditors bakers builders carpenters clerks climbers dancers dealers doctors
drivers engineers farmers fishermen gardeners governors guards guests historians inspectors judges
librarians mechanics merchants miners musicians neighbors nurses officers partners pilots planners
players poets printers reporters sailors scholars soldiers students surveyors tailors teachers
tourists traders travelers trustees visitors voters weavers witnesses workers
""")

MANNERS = _words("""
almost always barely briefly calmly carefully certainly clearly eagerly easily finally formally gladly
gradually happily hardly kindly merely nearly never often openly partly perhaps politely promptly
proudly quickly quietly rarely readily seldom simply slowly soon sternly suddenly surely swiftly
usually warmly wisely
""")
