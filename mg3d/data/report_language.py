"""Leftovers of another language in an English report, as translated sets such as CT-RATE have.

The rule: a sentence is foreign if it has at least two words of the lists below and more of them
than common English words, or one of them, a letter that English lacks, and no common English word.
A single foreign word in an English sentence stays, and so does what is in neither list.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that no English report uses. Not in it, for they are English too: her, die, war, also, in.
TURKISH = _words(
    "ve bir olan olarak ile için veya gibi iki izlendi izlenmektedir izlenmemiştir izlenmedi"
    " saptanmadı saptanmamıştır saptandı görüldü görülmektedir görülmedi mevcuttur mevcut yoktur"
    " normaldir doğaldır açıktır sağ sol akciğer akciğerde akciğerin akciğerlerde loblarda lobda"
    " lobunda üst alt orta kalp boyutları boyutu mediastende lenf nodu nodül nodüller"
    " plevral efüzyon bulgu bulgular sonuç toraks bt kesitlerde inceleme incelemede hasta düzeyinde"
    " artmış hafif boyutta büyük küçük kemik yapılarda bronş damar çapı"
    " değerlendirilmiştir değerlendirme patolojik kalınlaşma"
)
GERMAN = _words(
    "und der das des dem den ein eine einer eines keine kein nicht mit von vom zur zum bei auf ist"
    " sind im wird werden sich oder nach beidseits rechts rechten rechte linken linke lunge"
    " lungen herz unauffällig nachweis befund beurteilung keinen regelrecht regelrechte"
    " vergrößert vergrößerte lymphknoten pleuraerguss rundherd verdichtung oberlappen unterlappen"
    " mittellappen zeigt sowie ohne für über"
)
ENGLISH = _words(
    "the of and is are in no with to there a an was were on at or for not seen noted normal left"
    " right lung lungs lobe upper lower without has have been by from as this both measuring size"
    " effusion nodule nodules"
)
_FOREIGN = TURKISH | GERMAN
_WORD = re.compile(r"[^\W\d_]+")
_FOREIGN_LETTER = re.compile(r"[çğıöşüäßÇĞİÖŞÜÄ]")
# A sentence ends at its mark, at a blank line, or where the next line begins one or a list item.
_BOUNDARY = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n(?=\s*(?:[^\W\d_a-zß-ÿğış]|\d|[-•*]))")


def is_foreign(sentence: str) -> bool:
    """Whether the module's rule takes ``sentence`` for Turkish or German."""
    words = [word.replace("İ", "i").lower() for word in _WORD.findall(sentence)]
    foreign = sum(word in _FOREIGN for word in words)
    if not foreign:
        return False
    english = sum(word in ENGLISH for word in words)
    if foreign >= 2 and foreign > english:
        return True
    return not english and _FOREIGN_LETTER.search(sentence) is not None


def foreign_spans(text: str) -> list[tuple[int, int]]:
    """Spans of the foreign sentences of ``text``, in order."""
    spans, start = [], 0
    for end, following in [*(m.span() for m in _BOUNDARY.finditer(text)), (len(text), len(text))]:
        if is_foreign(text[start:end]):
            spans.append((start, end))
        start = following
    return spans
