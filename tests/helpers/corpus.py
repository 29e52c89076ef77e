"""Text in many scripts: the first sentence of the Universal Declaration of Human Rights, and awkward cases."""

import gettext
import json
import unicodedata
from pathlib import Path

from tests.helpers.real_tokenizer import package_file

DECLARATION = {
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "cs": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "en": "All human beings are born free and equal in dignity and rights. They're endowed with reason; WE'LL see.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "fa": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "hy": "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով։",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ka": "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "ta": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İIıi",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "zh-tw": "人皆生而自由;在尊嚴及權利上均各平等。",
}

AWKWARD = (
    "",
    " ",
    "\n",
    "\r\n\r\n \t\u00a0\u3000 x",
    "e\u0301 \u1e9b\u0323 \ufb01 \u2126 \uac00 \u1100\u1161 \u0344",  # NFC composes some and leaves others
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 \U0001f44d\U0001f3fd \U000e0041 \U0010fffd",
    "1234567890 ½ ٣ ൩ ² Ⅷ",
    "don't DON'T it'S we'Ll I'\u017f",  # (?i:'s) matches U+017F too
    "foo_bar.baz(qux)[0] != 'x'  # comment\n\n\n    return    \n",
    "\x00\x01\x7f\x80\xff\ufeff\ufffe\uffff\ufffd",
    "<|im_start|>user\nHi<|im_end|><|endoftext|><think>\n\n</think>\n\n<tool_call></tool_call><tool_response>",
    "< think ><think ></ think><|im_start |><|im_start<|im_start|>|>",
    "e<|im_end|>\u0301 <|fim_prefix|>\u0301",  # a mark that cannot compose across a token
    "a" * 3000 + " " * 3000 + "\n" * 300 + "=" * 300,
    "ﷺ" * 40 + "ဪ" * 20,
)


def documents() -> list[str]:
    """Real text: Python's library, a multilingual package, and the message catalogues that this machine has."""
    library = Path(json.__file__).parent.parent
    files = sorted(library.glob("*.py"))[::8]
    files += sorted(package_file("qwen_agent").rglob("*.py"))[::4]
    files += sorted(package_file("transformers", "models").glob("q*/*.py"))[::12]
    texts = [path.read_text(encoding="utf-8") for path in files]
    for path in sorted(Path("/usr/share").glob("**/LC_MESSAGES/*.mo"))[::150]:
        with path.open("rb") as catalogue:
            try:
                texts.append("\n".join(map(str, gettext.GNUTranslations(catalogue)._catalog.values())))
            except (UnicodeDecodeError, OSError):
                continue  # an old encoding or a broken file of the system's
    every = [chr(i) for i in range(0, 0x30000, 3) if unicodedata.category(chr(i)) not in ("Cn", "Cs", "Co")]
    texts += ["".join(every), " ".join(every)]
    return [*DECLARATION.values(), "\n".join(DECLARATION.values()), *AWKWARD, *texts]
