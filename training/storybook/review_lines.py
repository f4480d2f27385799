"""Sentences of the reviews, as templates (see `engine`); `it/they` agree with the product.

Lists of five are by stars, from one to five.
"""

from __future__ import annotations

from training.storybook.engine import lines

MACHINE = {
    "fine": "it/they works/work well",
    "works": "it/they [works/work [well|perfectly|every day]|is/are easy to use]",
    "still": "it/they works/work",
    "sometimes": "sometimes it/they works/work and sometimes it/they does/do not",
    "fails": "it/they [does/do not work well|is/are not easy to use]",
    "lasted": "it/they worked",
    "useless": "that does/do not work",
}
"""What machines do, and in `WORN` what other products do instead."""

WORN = {
    "fine": "it/they is/are just right",
    "works": "it/they is/are just what I [needed|wanted]",
    "still": "I use it/them",
    "sometimes": "some days I like it/them and some days I do not",
    "fails": "it/they looked better in the picture",
    "lasted": "it/they was/were fine",
    "useless": "that fell apart",
}

WHEN = "[last week|last month|two weeks ago|a year ago|online]"

PLAIN_OPENINGS = lines("""
4* I bought this/these {product} {purpose} .
3* I bought this/these {product} {when} .
2* I bought this/these {product} {purpose} {when} .
2* I bought this/these {product} because \
    [my old one/ones broke|I wanted to {use}|my friend told me to] .
1* I bought this/these {product} to {use} .
1* I bought this/these [cheap|new|red|black|blue|small|big] {product} {purpose} .
""")

QUICK_OPENINGS = (
    lines("""
        2* I bought this/these {product} {when} and it/they is/are [already|] \
            [broken|dead|useless] .
        2* I bought this/these {product} {purpose} and it/they [broke|fell apart] \
            [after two days|the next day] .
        1* I bought this/these {product} and I [hate^0.4 it/them|want my money back] .
        1* I bought this/these [terrible|useless|stupid^0.4] {product} {purpose} .
        1* I bought this/these {product} {purpose} . \
            [great , another/more broken {product}|what a waste of money] .
        """),
    lines("""
        2* I bought this/these {product} {purpose} but {fails} .
        2* I bought this/these {product} {when} and I am not happy .
        2* I bought this/these {product} {purpose} , but {bad} .
        1* I bought this/these [cheap|ugly] {product} {when} and it/they looks/look cheap .
        """),
    lines("""
        2* I bought this/these {product} {purpose} and it/they is/are okay .
        2* I bought this/these {product} {when} . {good} , but {bad} .
        1* I bought this/these {product} {purpose} and I am not sure if I like it/them .
        """),
    lines("""
        2* I bought this/these {product} {purpose} and {fine} .
        2* I bought this/these {product} {when} and I am [happy|quite happy] with it/them .
        1* I bought this/these [nice|good] {product} {purpose} .
        1* I bought this/these {product} {purpose} and {good} .
        """),
    lines("""
        3* I bought this/these {product} {purpose} and [I|we] love it/them .
        2* I bought this/these {product} {when} and it/they is/are [perfect|wonderful|great] .
        1* I bought this/these [wonderful|beautiful|great] {product} {purpose} .
        1* I bought this/these {product} {purpose} and {good} .
        """),
)

ARRIVALS = (
    lines("""
        it/they came [three weeks|two weeks|a month] late [and the box was broken|] .
        the box was [open|broken|wet] and the {part} was [broken|gone] .
        it/they was/were broken when I opened the box .
        """),
    lines("""
        it/they came [a week|two weeks] late .
        the box was [open|wet] and the {part} looked old .
        """),
    lines("""
        it/they came [on time|a week late] .
        it/they looks/look like the picture .
        """),
    lines("""
        it/they came [on time|fast] and looked [good|nice] .
        it/they looks/look [just|] like the picture .
        """),
    lines("""
        it/they came [very fast|one day early|the next day] .
        it/they looks/look even better than the picture .
        """),
)

GOOD = lines("""
4* {good} .
2* {good} and {good2} .
2* the {part} is [great|strong|very good|beautiful] .
1* {works} .
1* it/they [was/were easy to clean|is/are worth every dollar] .
1* my [wife|husband|son|mom|family] [loves|likes] it/them [too|] .
1* I use it/them every day .
""")

MIDDLING = lines("""
2* {good} , but {bad} .
2* the {part} is [good|nice] , but {bad} .
{bad} , but {good} .
it/they is/are [okay|fine] for the price .
it/they is/are not [great|perfect] , but {still} .
the {part} [could be better|is only okay] .
{sometimes} .
""")

BAD = lines("""
4* {bad} .
2* {bad} and {bad2} .
2* the {part} [broke|fell off] [after two days|after a week|the next day|] .
1* the {part} is [already|] broken .
1* the {part} is [cheap|weak|broken|ugly|too small] .
1* it/they [fell apart|broke] [after two days|after a week|in a month] .
1* {fails} .
1* my [wife|husband|son|mom] [hates^0.3|does not like] it/them .
1* the seller never [answered|called me back] .
1* I could not {use} with it/them .
""")

IRONIC = lines("""
3* great , another/more broken {product} .
wow , {lasted} for [two|three] whole days .
just what I [needed|wanted] , a/ {product} {useless} .
I love it/them when the {part} [breaks|falls off] .
[wonderful|perfect] , now I have a broken {part} .
thank you for nothing .
if you love smoke and broken things , this/these is/are for you .
my dog likes the box more than the {product} .
""")

SURPRISED = lines("""
I wanted to hate it/them , but I [love|really like] it/them .
my old one/ones was/were terrible , but this/these is/are [great|perfect|wonderful] .
I thought it/they was/were cheap and ugly , but I was wrong .
I was afraid it/they would break , but it/they never did .
after a year nothing is broken .
""")

VERDICTS = (
    lines("""
        3* do not buy this/these {product} .
        what a waste of money .
        I [hate^0.4|really hate^0.4] it/them .
        it/they is/are [useless|terrible|the worst {product} I have ever had] .
        never again .
        """),
    lines("""
        I am [not happy|sad] with it/them .
        I [wanted more|thought it/they would be better] .
        it/they is/are not worth the money .
        do not pay so much for it/them .
        """),
    lines("""
        it/they is/are okay [, but not great|for the price|] .
        not bad , not great .
        I have seen better and I have seen worse .
        you get what you pay for .
        """),
    lines("""
        I am happy with it/them .
        I like it/them [a lot|very much|] .
        it/they is/are good for the price .
        a/ good {product} for the price .
        almost perfect .
        """),
    lines("""
        3* I love it/them [so much|] .
        it/they is/are the best {product} I have ever had .
        I could not be happier .
        what a/ [wonderful|beautiful|great] {product} !
        it/they is/are perfect .
        """),
)

ENDINGS = (
    lines("""
        2* I want my money back .
        2* I am sending it/them back [today|tomorrow|] .
        2* one star [from me|is too much|] .
        I threw it/them away .
        I will never buy from this seller again .
        """),
    lines("""
        2* two stars [from me|] .
        2* I [may|will] send it/them back .
        I would not buy it/them again .
        next time I will buy a better one .
        """),
    lines("""
        3* three stars [from me|] .
        I may keep it/them [or I may not|] .
        I do not know if I would buy it/them again .
        """),
    lines("""
        3* four stars [from me|because nothing is perfect|] .
        I would buy it/them again .
        I will keep it/them .
        """),
    lines("""
        3* five stars [from me|] !
        2* I would buy it/them again [and again|today|] .
        2* I bought [another one|two more] for my [mom|friend|dad] .
        [thank you so much|everyone should have one/them] !
        """),
)
