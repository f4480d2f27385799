"""Sentences of quarrels and hostile turns by degree, of threats, repairs and escapes.

`a` does it to `b`; the numbers after `^` add up to how hostile the text reads so far.
"""

from __future__ import annotations

from training.storybook.engine import lines

QUARREL = lines("""
“ [no|stop] , [it is mine|that is my {thing}|give it back]^0.4 ! ” said {a} .
{a} and {b} began to [fight^0.7|argue^0.4] about the {thing} .
{a} did not want to share^0.3 [the {thing}|with {b}] .
{a} [took^0.3|grabbed^0.5] the {thing} and ran away .
{a} was angry^0.4 [at {b}|because {b} had the {thing}|and did not want to play] .
“ you are not my friend^0.5 , ” said {a} .
“ I do not like you^0.4 , ” said {a} .
""")

HOSTILE = lines("""
“ I hate^1 you ! ” [yelled^0.5|shouted^0.5] {a} .
“ you are [so|very|] [3* stupid^1.1|2* ugly^0.8|weak^0.6|mean^0.4] ! ” \
    [yelled^0.5|shouted^0.5|said] {a} .
{a} [yelled^0.6|shouted^0.6] , “ go away^0.4 , \
    [you are stupid^1|I hate^1 you|nobody likes^0.6 you] ! ”
{a} [yelled^0.7|shouted^0.7] at {b} [and called {b.o} [stupid^1.1|ugly^0.8|names^0.5]|] .
{a} called {b} [stupid^1.1|ugly^0.8|weak^0.6] and laughed^0.4 at {b.o} .
{a} pushed^1.1 {b} [into the mud^0.2|to the ground^0.2|away] .
{a} [broke^1.1|threw^0.6] the {thing} [on the ground|into the water] and laughed^0.5 .
{a} stole^0.8 the {thing} and [laughed^0.4|ran away] .
“ I do not want to see you again , you stupid^1.1 {b.k} ! ” [said|shouted^0.5] {a} .
""")

VERY_HOSTILE = lines("""
{a} hit^1.6 {b} and yelled^0.5 , “ you are [stupid^1.1|ugly^0.8|weak^0.6] and I hate^1 you ! ”
{a} grabbed^0.5 {b} and threw^1.2 {b.o} [to the ground|into the mud|into the cold water]^0.4 .
2* {a} hit^1.8 {b} [in the face^0.6|very hard^0.4|with a [stick|stone]^0.6|again and again^0.8] .
{a} [kicked^1.6|pushed^1.2] {b} and hit^1.6 {b.o} \
    [with a stick^0.5|in the face^0.5|again and again^0.8|] .
“ I will [hurt^1.5|hit^1.5|kick^1.4] you , you [stupid^1.1|ugly^0.8] {b.k} ! ” \
    [yelled^0.5|shouted^0.5] {a} .
{a} threw stones^1.4 at {b} and [laughed^0.5|yelled^0.6 , “ I hate^1 you ! ”]
{a} wanted to hurt^1.4 {b} [and everyone {b.s} loved^0.4|very much^0.3] .
{a} bit^1.6 {b} [on|in] the [arm|leg] and {b.s} cried .
{a} hated^1 {b} and wanted to hurt^1.4 {b.o} .
""")

THREATS = lines("""
“ [I am hungry and|now] I will eat^1.1 you ! ” [said|yelled^0.5|shouted^0.5] {v} .
“ go away^0.4 or I will [hurt^1.4|eat^1.1|kick^1.3] you ! ” [yelled^0.5|said] {v} .
{v} [ran after|looked at] {h} with [big|red] eyes^0.4 .
{v} was angry^0.4 because {v.s} was [hungry|alone] .
{v} wanted to [eat^0.9|hurt^1.3|scare^0.6] {h} [and everyone in the village^0.3|] .
""")

ROBS = lines("""
“ give me the {thing} or I will [hurt^1.4|eat^1.1|hit^1.4] you ! ” [yelled^0.5|shouted^0.5|said] \
    {v} .
{v} wanted to [eat^0.9|hurt^1.3|scare^0.6] {h} [and take the {thing} ^0.2|] .
{v} laughed^0.5 and took^0.4 the {thing} .
""")

VILLAIN_SOFT = lines("""
but {v} was only [hungry|lonely|sad]^-0.5 .
but {v} [did not want to hurt anyone|wanted a friend]^-0.6 .
“ do not be afraid , I am [nice|only lonely]^-0.5 , ” said {v} .
""")

TAUNTS = lines("""
{v} called {h} [stupid^1.1|ugly^0.8|weak^0.6] and laughed^0.4 at {h.o} .
{v} pushed^1.1 {h} [into the mud^0.2|to the ground^0.2|away] .
“ you are [weak^0.6|stupid^1.1|ugly^0.8] and nobody will help you^0.5 ! ” [yelled^0.5|said] {v} .
{v} [broke^1.1|stole^0.8] {h.p} [toys|{thing}] and laughed^0.5 .
""")

CRIES = lines("""
{b} [began to cry|cried|ran home] .
{b} was [very|so] [sad|scared] and [cried|ran away|ran home] .
“ [please stop|stop it] ! ” cried {b} .
“ why are you so mean^0.3 ? ” asked {b} .
""")

REPAIRS = lines("""
3* {a} said [2* sorry^-1|{a.s} was sorry^-1] [and hugged^-0.3 {b}|and gave^-0.3 the {thing} back|] .
“ I am [so|very|] sorry^-1 , ” said {a} [and hugged^-0.3 {b}|] .
{a} felt [bad|sorry]^-0.6 and [helped^-0.4 {b}|gave^-0.4 {b} a cake] .
“ let us be friends^-0.7 [again|] , ” said [{a}|{b}] .
“ we can share^-0.5 the {thing} , ” said [{a}|{b}] .
""")

FORGIVES = lines("""
{b} [smiled|hugged {a.o}] and [they were friends again|was not angry at all] .
then they [laughed|played together|were happy] again .
“ it is okay , ” said {b} [and smiled|] .
""")

STANDS_UP = lines("""
“ stop [it|] , that is not [nice|kind] ! ” said {w} .
{w} [came and said|said] that {a} must [stop|say sorry] .
{w} told {a} to [be kind|say sorry|go home] .
""")

SOFT_ENDS = lines("""
{h} gave {v} [bread|a cake|an apple] and {v} smiled .
{h} and {v} became friends and [laughed|danced] together .
{h} was not afraid at all and played with {v} .
""")

BEATEN = lines("""
{h} was [brave|clever] and {v} ran away .
then {w} came and {v} ran away [into the forest|] .
{h} [ran|ran home] as fast as {h.s} could .
{h} [hid|tried to hide] until {v} was gone .
{h} was not afraid and said , “ [stop|go away] ! ”
{h} gave {v} [bread|a cake|an apple] and {v} [smiled^-0.4|was nice^-0.5] .
""")
