"""Facts in German and Chinese texts, asked for in the same language."""

from collections.abc import Iterator
from dataclasses import dataclass

from deltahalt.lab.evaluation.shapes.base import ROOM, Made, Order, asked_after
from deltahalt.lab.evaluation.shapes.documents import filled, planted
from deltahalt.lab.evaluation.shapes.draw import Draw, count_tokens
from deltahalt.lab.evaluation.shapes.names import words
from deltahalt.lab.evaluation.shapes.scorers import Names


@dataclass(frozen=True)
class Language:
    """Sentences with places for words, the words by place, and facts: what is said, what is asked, the answer's place.

    gap: what stands between sentences. density: tokens by `count_tokens` for each that models have, about.
    """

    sentences: tuple[str, ...]
    words: dict[str, list[str]]
    facts: tuple[tuple[str, str, str], ...]
    gap: str
    density: float = 1.0


GERMAN = Language(
    sentences=(
        "Die {sache} in {ort} wurde im {monat} für einige Wochen geschlossen.",
        "Nach Angaben von {name} fehlten noch {zahl} Unterschriften.",
        "{name} hielt den Plan für zu teuer und schlug eine andere Lösung vor.",
        "Seitdem kommen jedes Jahr etwa {zahl} Besucher nach {ort}.",
        "Der Verein hat beschlossen, die {sache} nicht zu verkaufen.",
        "Im Protokoll steht nur, dass {name} und {name} verschiedener Meinung waren.",
        "Die Lieferung von {ware} verzögerte sich bis in den {monat}.",
        "Wer die {sache} gebaut hat, weiß in {ort} niemand mehr.",
        "Auf die Frage nach den Kosten antwortete {name} ausweichend.",
        "Für {ware} wurden zuletzt {zahl} Kronen je Tonne bezahlt.",
        "Zwischen {ort} und der Küste liegen mehrere kleine Bahnhöfe.",
        "Die Gemeinde {ort} hat im {monat} einen neuen Antrag gestellt.",
        "Bei starkem Regen bleibt der Weg zur {sache} gesperrt.",
        "{name} sammelt alte Postkarten, auf denen die {sache} zu sehen ist.",
        "Am Ende wurde die {sache} mit {ware} verkleidet, was niemandem gefiel.",
        "Ein Gutachten warnte davor, {ware} im Freien zu lagern.",
    ),
    words={
        "name": [
            f"{first} {last}"
            for first in words("Anke Bernd Clara Detlef Elke Frieder Gesa Holger Imke Jochen Karin Lutz Meike Norbert")
            for last in words(
                "Ahlers Brinkmann Cordes Dierks Eggers Fehling Grotjahn Hinrichs Ihde Jürgens Kröger Lührs"
            )
        ],
        "ort": [
            f"{begin}{end}"
            for begin in words("Alten Birken Buchen Eschen Falken Hohen Kirch Lang Mühl Nieder Ober Raben Stein Wald")
            for end in words("au bach berg dorf feld furt hagen heim hausen rode tal weiler")
        ],
        "sache": words(
            "Mühle Brücke Schleuse Bibliothek Werft Turnhalle Kapelle Fähre Gärtnerei Molkerei Ziegelei Sternwarte"
        ),
        "ware": words("Schiefer Leinöl Gerste Kork Filz Zinn Hanf Gips Roggen Flachs Talg Kalk Harz Ton"),
        "monat": words("Januar Februar März April Mai Juni Juli August September Oktober November Dezember"),
        "zahl": [str(number) for number in range(12_011, 98_000, 37)],
        "farbe": words("türkis violett ockergelb purpurn scharlachrot indigoblau olivgrün beige"),
    },
    facts=(
        ("Das Schließfach von {name} hat die Nummer {0}.", "Welche Nummer hat das Schließfach von {name}?", "zahl"),
        ("{name} wurde in {0} geboren.", "In welchem Ort wurde {name} geboren?", "ort"),
        ("Die Leitung der Feuerwehr in {ort} hat {0}.", "Wer leitet die Feuerwehr in {ort}?", "name"),
        ("In {ort} wohnen genau {0} Menschen.", "Wie viele Menschen wohnen in {ort}?", "zahl"),
        ("Das Dach der Schule in {ort} ist {0}.", "Welche Farbe hat das Dach der Schule in {ort}?", "farbe"),
        ("Das Schiff von {name} hat {0} geladen.", "Was hat das Schiff von {name} geladen?", "ware"),
        ("Das neue Rathaus in {ort} kostete {0} Kronen.", "Wie viele Kronen kostete das Rathaus in {ort}?", "zahl"),
        ("Die Witwe von {name} zog nach {0}.", "Wohin zog die Witwe von {name}?", "ort"),
    ),
    gap=" ",
    density=0.75,
)
CHINESE = Language(
    sentences=(
        "{ort}的{sache}在{monat}关闭了几个星期。",
        "据{name}说,当时还缺少{zahl}个签名。",
        "{name}认为这个计划太贵,提出了另一个办法。",
        "从那以后,每年大约有{zahl}名游客来到{ort}。",
        "会议决定暂时不出售{sache}。",
        "记录里只写着{name}和{name}意见不同。",
        "{ware}的运输一直推迟到{monat}。",
        "{sache}是谁建造的,{ort}已经没有人知道了。",
        "当被问到费用时,{name}没有直接回答。",
        "最近一吨{ware}的价格是{zahl}元。",
        "从{ort}到海边有几个很小的车站。",
        "{ort}在{monat}又提交了一份申请。",
        "下大雨的时候,通往{sache}的路是封闭的。",
        "{name}收集印有{sache}的旧明信片。",
        "最后{sache}的外墙用了{ware},大家都不满意。",
        "一份报告提醒说,{ware}不能放在露天。",
    ),
    words={
        "name": [
            f"{family}{given}"
            for family in words("王 李 张 刘 陈 杨 赵 黄 周 吴 徐 孙 胡 朱 高 林")
            for given in words("建国 秀英 志强 丽华 文博 晓燕 海峰 玉兰 俊杰 雪梅 德明 春花 永康 静怡")
        ],
        "ort": [
            f"{begin}{end}"
            for begin in words("青石 白沙 柳林 东湖 南山 古塘 新桥 红岩 长坪 竹溪 金河 云台 双井 松岭")
            for end in words("镇 村 县 乡 港 寨")
        ],
        "sache": words("磨坊 大桥 水闸 图书馆 船厂 体育馆 寺庙 渡口 苗圃 奶牛场 砖厂 天文台"),
        "ware": words("石板 亚麻油 大麦 软木 毛毡 锡 大麻绳 石膏 黑麦 亚麻 牛油 石灰 松香 陶土"),
        "monat": words("一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月"),
        "zahl": [str(number) for number in range(12_029, 98_000, 41)],
        "farbe": words("青绿色 紫色 土黄色 深红色 朱红色 靛蓝色 橄榄绿色 米色"),
    },
    facts=(
        ("{name}的储物柜号码是{0}。", "{name}的储物柜号码是多少?", "zahl"),
        ("{name}出生在{0}。", "{name}出生在什么地方?", "ort"),
        ("{ort}消防队的队长是{0}。", "{ort}消防队的队长是谁?", "name"),
        ("{ort}一共住着{0}个人。", "{ort}一共住着多少人?", "zahl"),
        ("{ort}小学的屋顶是{0}的。", "{ort}小学的屋顶是什么颜色?", "farbe"),
        ("{name}的船上装的是{0}。", "{name}的船上装的是什么?", "ware"),
        ("{ort}新的办公楼花了{0}元。", "{ort}新的办公楼花了多少元?", "zahl"),
        ("{name}的女儿后来搬到了{0}。", "{name}的女儿后来搬到了哪里?", "ort"),
    ),
    gap="",
    density=0.9,
)
DECOYS = 2


def german_fact(order: Order) -> Made:
    """A fact in a German text."""
    return _asked(order, GERMAN)


def chinese_fact(order: Order) -> Made:
    """A fact in a Chinese text."""
    return _asked(order, CHINESE)


def paragraphs(draw: Draw, language: Language) -> Iterator[str]:
    """Paragraphs in a language, without end."""
    while True:
        chosen = draw.random.sample(draw.own(language.sentences), draw.between(3, 7))
        yield language.gap.join(_spoken(draw, language, sentence) for sentence in chosen)


def _spoken(draw: Draw, language: Language, sentence: str) -> str:
    """The sentence with words in its places, each place with a word of its own."""
    for place, choices in language.words.items():
        while f"{{{place}}}" in sentence:
            sentence = sentence.replace(f"{{{place}}}", draw.one(choices), 1)
    return sentence


def _asked(order: Order, language: Language) -> Made:
    draw = order.draw
    sentence, question, kind = draw.one(language.facts)
    about = next(place for place in ("name", "ort") if f"{{{place}}}" in sentence)
    subjects = draw.some(language.words[about], DECOYS + 1)
    answers = draw.some([word for word in language.words[kind] if word not in subjects], DECOYS + 1)
    facts = [sentence.format(answer, **{about: subject}) for subject, answer in zip(subjects, answers, strict=True)]
    asked = question.format(**{about: subjects[0]})
    used = {*subjects, *answers}
    texts = (text for text in paragraphs(draw, language) if not any(word in text for word in used - {answers[0]}))
    room = int((order.tokens - ROOM) * language.density) - sum(map(count_tokens, facts))
    text = planted(draw, filled(texts, room), facts)
    return asked_after(text, asked, facts[0], Names(answers[0], tuple(answers[1:])))
